"""Stage `train`: a model learns from the train split's shards."""

from pathlib import Path
from typing import Any

from lmlab.core import params, registry
from lmlab.core.params import Tree
from lmlab.data.shards import open_shards
from lmlab.data.tokenizers import base as tokenizers
from lmlab.experiments.stages.layout import Layout
from lmlab.training import loop
from lmlab.training.loop import RunFolders
from lmlab.training.step import TrainParams


def train(tree: Tree, layout: Layout, start: Path | None = None) -> dict[str, Any]:
    """Write `layout.model`, `layout.training` and `layout.snapshots`; return what it took.

    `start` is the folder of a saved model whose weights are the initial ones.
    """
    section = params.section(tree, "train", TrainParams)
    tokenizer = tokenizers.load(layout.tokenizer_file)
    shards = open_shards(layout.shards, layout.tokenizer_file)
    parts = registry.choices(tree, "train", section)
    folders = RunFolders(layout.model, layout.training, layout.snapshots)
    return loop.train(section, parts, shards, tokenizer, folders, start).model_dump()
