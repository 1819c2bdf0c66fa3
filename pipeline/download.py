"""Stage `download`: a corpus becomes cleaned, split documents in Parquet and a manifest."""

from pathlib import Path

from lmlab.data import collect as collecting
from lmlab.data.collect import DownloadParams
from pipeline import read_params, run_stage


def download(corpus: Path = Path("data/corpus")) -> None:
    """Get the corpus that `download.corpus` names and write its documents to CORPUS."""
    params, parts = read_params("download", DownloadParams)
    manifest = collecting.build(params, parts["corpus"].build(), corpus)
    for split, size in manifest.splits.items():
        print(f"download: {split}: {size.documents:,} documents, {size.bytes:,} bytes")


if __name__ == "__main__":
    run_stage(download)
