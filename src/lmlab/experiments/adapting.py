"""Adaptation: how many tokens a trained model needs to recover after its corpus changes.

Two changes. By default the text stays and every token gets another id, drawn once: all statistics
of the text are as before, so what has to be learned anew is only what stands for what, and the old
level can be reached. Or another corpus, in the trained model's own tokenizer; that one may be
harder or easier, so the old level is a mark and no more. Either way the model goes on learning by
its own rule and optimizer, at a constant rate, beside the same model from scratch: what the one has
before the other at equal tokens is what it kept.
"""

import json
import math
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from lmlab.core import params, registry
from lmlab.core.errors import UserError
from lmlab.core.params import Tree
from lmlab.core.registry import Choice
from lmlab.data.shards import RowGroup, Shards, open_shards
from lmlab.data.start import Start
from lmlab.data.tokenizers import base as tokenizers
from lmlab.data.tokenizers.base import Ids
from lmlab.evaluation.measures.learning_curve import reached
from lmlab.experiments.stages.download import download
from lmlab.experiments.stages.layout import Layout
from lmlab.experiments.stages.shard import shard
from lmlab.model.device import use_device
from lmlab.model.models import base as models
from lmlab.model.record import ModelRecord, read_record
from lmlab.model.scoring import validation_bits
from lmlab.training import loop
from lmlab.training.results import RunFolders
from lmlab.training.status import ADVICE, how_it_diverged
from lmlab.training.step import TrainParams

SCHEDULE = "constant"
QUIET = {"sample_every": 0, "snapshots": 0, "patience": 0, "keep": "last"}


class Change(NamedTuple):
    """What becomes of the corpus."""

    corpus: str
    """Another one, a block of `corpora`; empty: the same with other ids."""
    seed: int
    """Which ids those are."""


class Course(NamedTuple):
    """A run after the change."""

    curve: list[list[float]]
    """(tokens, bits per byte on validation)."""
    diverged: str
    """At which step it diverged and why; empty if it did not."""


@dataclass(frozen=True)
class Renamed(Shards):
    """Shards in which every id of text stands for another; the BOS token stays what it is."""

    names: Ids
    """The new id of each, shape (vocabulary,)."""

    @property
    def fingerprint(self) -> str:
        return super().fingerprint + json.dumps(self.names.tolist())

    def read(self, group: RowGroup) -> Ids:
        return self.names[super().read(group)]


def renamed(shards: Shards, seed: int) -> Renamed:
    """The ids that occur in the train split exchanged among themselves, at random; the others
    stay.
    """
    used = np.unique(shards.stream("train"))
    used = used[used != shards.bos]
    names = np.arange(shards.vocabulary_size, dtype=shards.ids_type)
    names[used] = np.random.default_rng(seed).permutation(used)
    return Renamed(shards.folder, shards.manifest, shards.ids_type, names)


def adapt(
    tree: Tree, layout: Layout, change: Change, steps: int, every: int, within: float
) -> dict[str, Any]:
    """Train the model in `layout.model` on, after the change, for `steps`; train the same from
    scratch; return the course of both.

    All losses are bits per byte of validation, in windows that do not overlap. `before` is that of
    the trained model on its own text; `level`, `within` above it, is what counts as recovered;
    `at_once` is the loss right after the change. `adapted` and `from_scratch` hold a `curve` of
    (tokens, loss), and `tokens_to_level` (see `reached`), None where the level was not reached. The
    curve of a run that diverged ends there, and `diverged` says where and why.

    Raises UserError when params.yaml no longer names the model that was trained, or when that
    diverged.
    """
    tree = params.changed(tree, {f"train.{key}": value for key, value in QUIET.items()})
    tree = params.changed(tree, {"train.steps": steps, "train.schedule": SCHEDULE})
    tree = params.changed(tree, {"train.validate_every": every, "train.log_every": every})
    section = params.section(tree, "train", TrainParams)
    choices = registry.choices(tree, "train", section)
    model, record = models.load(layout.model, use_device(section.device, section.threads))
    shards = open_shards(layout.shards, layout.tokenizer_file)
    _check_goes_on(section, choices, record, shards, layout)
    before = validation_bits(model, shards)
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        if change.corpus:
            shards = _of_corpus(tree, change.corpus, layout, folder)
        else:
            shards = renamed(shards, change.seed)
        at_once = validation_bits(model, shards)

        def course(name: str, start: Start | None) -> Course:
            run = replace(Layout.below(folder / name), tokenizer=layout.tokenizer)
            return _course(section, choices, shards, run, start)

        trained = Start(layout.model, layout.tokenizer, layout.state, made_by="train")
        adapted, from_scratch = course("adapted", trained), course("from_scratch", None)
    level = before + within
    if math.isfinite(at_once):
        adapted = adapted._replace(curve=[[0, at_once], *adapted.curve])
    return {
        "change": change._asdict(),
        "before": before,
        "level": level,
        "at_once": at_once,
        "adapted": _summary(adapted, level),
        "from_scratch": _summary(from_scratch, level),
    }


def _check_goes_on(
    section: TrainParams,
    choices: dict[str, Choice],
    record: ModelRecord,
    shards: Shards,
    layout: Layout,
) -> None:
    """Raise UserError where the saved model cannot be trained on with these params."""
    if diverged := how_it_diverged(record):
        raise UserError(
            f"{layout.model} cannot go on: its training {diverged}; {ADVICE}, then `dvc repro"
            " train`"
        )
    if choices["model"].record() != record.model or section.context != record.context:
        raise UserError(
            "params.yaml: train.model, its options or train.context are not those of"
            f" {layout.model}; run `dvc repro train` first, or set them back"
        )
    if record.tokenizer_sha256 != shards.manifest.tokenizer_sha256:
        raise UserError(
            f"{layout.model} was trained with another tokenizer than {layout.tokenizer_file}; run"
            " `dvc repro`"
        )


def _of_corpus(tree: Tree, name: str, layout: Layout, folder: Path) -> Shards:
    """Another corpus, cut and split as `download` would, in the trained model's tokenizer."""
    other = replace(Layout.below(folder), tokenizer=layout.tokenizer)
    tree = params.changed(tree, {"download.corpus": name})
    download(tree, other)
    shard(tree, other)
    return open_shards(other.shards, other.tokenizer_file)


def _course(
    section: TrainParams,
    choices: dict[str, Choice],
    shards: Shards,
    layout: Layout,
    start: Start | None,
) -> Course:
    """Go on from `start`, or train from scratch."""
    tokenizer = tokenizers.load(layout.tokenizer_file)
    folders = RunFolders(layout.model, layout.training)
    loop.train(section, choices, shards, tokenizer, folders, start)
    rows = [json.loads(line) for line in layout.log.read_text(encoding="utf-8").splitlines()]
    key = "validation_bits_per_byte"
    record = read_record(layout.model)
    curve = [[row["tokens"], row[key]] for row in rows if key in row]
    return Course(curve, how_it_diverged(record))


def _summary(course: Course, level: float) -> dict[str, Any]:
    tokens, bits = [row[0] for row in course.curve], [row[1] for row in course.curve]
    summary = {"tokens_to_level": reached(tokens, bits, level), "curve": course.curve}
    return {**summary, "diverged": course.diverged} if course.diverged else summary


def lines(found: dict[str, Any]) -> Iterator[str]:
    """What `adapt` found, in words, a line each."""
    yield (
        f"before the change {found['before']:.4f} bits/byte, right after it {found['at_once']:.4f}"
    )
    adapted, scratch = (dict(found[name]["curve"]) for name in ("adapted", "from_scratch"))
    yield f"{'tokens':>12}  {'adapted':>8}  from scratch"
    for tokens in sorted({*adapted, *scratch}):  # one may have ended before the other
        cells = f"{adapted.get(tokens, math.nan):>8.4f}  {scratch.get(tokens, math.nan):>12.4f}"
        yield f"{tokens:>12,}  {cells}".replace("nan", "  -")
    for name in ("adapted", "from_scratch"):
        tokens = found[name]["tokens_to_level"]
        when = "not reached" if tokens is None else f"reached after {tokens:,.0f} tokens"
        ended = f"; {found[name]['diverged']}" if "diverged" in found[name] else ""
        yield f"{name.replace('_', ' ')}: {found['level']:.4f} bits/byte {when}{ended}"
