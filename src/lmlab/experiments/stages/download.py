"""Stage `download`: get the corpus, clean it, split it."""

from lmlab.core import params, registry
from lmlab.core.params import Tree
from lmlab.data import collect
from lmlab.data.collect import DownloadParams
from lmlab.experiments.stages.layout import Layout


def download(tree: Tree, layout: Layout) -> None:
    """Write `layout.corpus`: documents in Parquet, a file for each split, and a manifest."""
    section = params.section(tree, "download", DownloadParams)
    corpus = registry.choices(tree, "download", section)["corpus"].build()
    manifest = collect.build(section, corpus, layout.corpus)
    for split, size in manifest.splits.items():
        print(f"download: {split}: {size.documents:,} documents, {size.bytes:,} bytes")
