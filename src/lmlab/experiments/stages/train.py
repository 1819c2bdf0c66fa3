"""Stage `train`: a model learns from the train split's shards."""

from dataclasses import replace
from typing import Any

from lmlab.core import params, registry
from lmlab.core.params import Tree
from lmlab.data import start as starting
from lmlab.data.shards import open_shards
from lmlab.data.start import StartParams
from lmlab.data.tokenizers import base as tokenizers
from lmlab.experiments.stages.layout import Layout
from lmlab.training import growing, loop
from lmlab.training.results import RunFolders
from lmlab.training.step import TrainParams


def train(tree: Tree, layout: Layout) -> dict[str, Any]:
    """Write `layout.model`, `layout.training`, `layout.snapshots` and `layout.state`; return what
    it took. The run goes on from `layout.start` where params.yaml names one.
    """
    section = params.section(tree, "train", TrainParams)
    tokenizer = tokenizers.load(layout.tokenizer_file)
    shards = open_shards(layout.shards, layout.tokenizer_file)
    parts = registry.choices(tree, "train", section)
    folders = RunFolders(layout.model, layout.training, layout.snapshots, layout.state)
    of_start = params.section(tree, "start", StartParams)
    start = starting.read(layout.start, of_start.commit)
    if start:
        growths = tuple(growing.chosen(tree, of_start.growth))
        carries = of_start.carries_optimizer_state
        start = replace(start, growths=growths, carries_optimizer_state=carries)
    if start and of_start.has_another_tokenizer:
        migration = registry.choices(tree, "start", of_start)["migration"]
        start = replace(start, migration=migration)
    return loop.train(section, parts, shards, tokenizer, folders, start).model_dump()
