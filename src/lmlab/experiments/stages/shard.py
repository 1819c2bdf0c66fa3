"""Stage `shard`: encode every split into shards of token ids."""

from lmlab.core import params
from lmlab.core.params import Tree
from lmlab.data import shard as sharding
from lmlab.data.shard import ShardParams
from lmlab.experiments.stages.layout import Layout


def shard(tree: Tree, layout: Layout) -> None:
    """Write `layout.shards` from the corpus and the tokenizer."""
    section = params.section(tree, "shard", ShardParams)
    manifest = sharding.build(section, layout.corpus, layout.tokenizer, layout.shards)
    for split, contents in manifest.splits.items():
        print(f"shard: {split}: {contents.tokens:,} tokens in {len(contents.files)} shard(s)")
