"""What params.yaml allows and hardly anybody wants: a line for each, from `lmlab check` and from
the stage it is about.

Nothing is refused here and nothing changed; so this is not among the dependencies of any stage, as
preflight is not.
"""

import os
import sys
from collections.abc import Iterator

from lmlab.core import params, registry
from lmlab.core.params import Tree
from lmlab.data.shard import ShardParams
from lmlab.training.optimizers.base import Averaging
from lmlab.training.schedules.base import Schedule, Warmup
from lmlab.training.step import TrainParams

TINY_CLIP = 1e-6
STAGES_WITH_THREADS = ("train", "evaluate", "probe")


def remarks(tree: Tree) -> Iterator[tuple[str, str]]:
    """(stage, line) for each. The params should have passed preflight.check."""
    yield from ((stage, line) for stage in STAGES_WITH_THREADS for line in _on_threads(tree, stage))
    shard = params.section(tree, "shard", ShardParams)
    if shard.processes > _cores():
        yield (
            "shard",
            f"shard.processes is {shard.processes:,}, and there are {_cores()} cores: more are no"
            " faster",
        )
    train = params.section(tree, "train", TrainParams)
    yield from (("train", line) for line in [*_on_learning_rate(tree, train), *_on_rhythm(train)])


def say(tree: Tree, only: str | None = None) -> None:
    """Print them on stderr, or those on one stage."""
    for stage, line in remarks(tree):
        if only in (None, stage):
            print(f"warning: params.yaml: {line}", file=sys.stderr, flush=True)


def _cores() -> int:
    return os.cpu_count() or 1


def _on_threads(tree: Tree, stage: str) -> Iterator[str]:
    block = params.block(tree, stage)
    threads, processes = int(block["threads"]), int(block["processes"])
    if threads > _cores():
        yield (
            f"{stage}.threads is {threads:,}, and there are {_cores()} cores: more threads than"
            " cores make it slow"
        )
    elif threads * processes > _cores() and not os.environ.get("WORLD_SIZE"):
        yield (
            f"{stage}.processes is {processes:,} with {threads:,} {stage}.threads each, and there"
            f" are {_cores()} cores: more threads than cores make it slow"
        )


def _on_learning_rate(tree: Tree, train: TrainParams) -> Iterator[str]:
    choice = registry.choose(tree, "schedules", train.schedule)
    options, key = choice.options, f"schedules.{train.schedule}"
    assert isinstance(options, Warmup)
    if options.warmup >= train.steps:
        yield (
            f"{key}.warmup is {options.warmup:,}, and train.steps {train.steps:,}: the learning"
            " rate never reaches its peak"
        )
        return
    schedule: Schedule = choice.build(train.steps)
    falls = schedule.factor(train.steps - 1) < schedule.factor(options.warmup)
    optimizer, _ = registry.find("optimizers", train.optimizer)
    if issubclass(optimizer, Averaging) and falls:
        yield (
            f"train.optimizer: {train.optimizer} averages the weights in place of a falling"
            f" learning rate, and train.schedule: {train.schedule} lets it fall as well; constant"
            " is meant for it"
        )


def _on_rhythm(train: TrainParams) -> Iterator[str]:
    steps = f"train.steps {train.steps:,}"
    if train.validate_every > train.steps:
        yield (
            f"train.validate_every is {train.validate_every:,}, and {steps}: there will be no"
            " learning curve, only its end"
        )
    if train.snapshots > train.steps:
        yield (
            f"train.snapshots is {train.snapshots:,}, and {steps}: there will be one for each step"
        )
    if train.checkpoint_seconds == 0:
        yield (
            "train.checkpoint_seconds is 0: a checkpoint after every step takes longer than"
            " most steps"
        )
    if 0 < train.clip < TINY_CLIP:
        yield (
            f"train.clip is {train.clip:g}: gradients are clipped to a norm of almost zero; 0 is no"
            " limit"
        )
