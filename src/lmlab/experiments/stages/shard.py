"""Stage `shard`: encode every split into shards of token ids."""

from concurrent.futures import Executor

from lmlab.core import params
from lmlab.core.params import Tree
from lmlab.data import shard as sharding
from lmlab.data.shard import ShardParams
from lmlab.experiments.stages.layout import Layout


def shard(tree: Tree, layout: Layout, executor: Executor | None = None) -> None:
    """Write `layout.shards` from the corpus and the tokenizer, by processes of this machine or by
    an executor's workers.
    """
    section = params.section(tree, "shard", ShardParams)
    manifest = sharding.build(section, layout.corpus, layout.tokenizer, layout.shards, executor)
    for split, contents in manifest.splits.items():
        print(f"shard: {split}: {contents.tokens:,} tokens in {len(contents.files)} shard(s)")
