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
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from lmlab.core import registry
from lmlab.core.errors import UserError
from lmlab.core.params import Tree, section
from lmlab.core.registry import Choice
from lmlab.data import collect as collecting
from lmlab.data import shard as sharding
from lmlab.data.collect import DownloadParams
from lmlab.data.shard import ShardParams
from lmlab.data.shards import RowGroup, Shards, open_shards
from lmlab.data.tokenizers import base as tokenizers
from lmlab.data.tokenizers.base import Ids
from lmlab.evaluation.measures.learning_curve import reached
from lmlab.model.device import use_device
from lmlab.model.models import base as models
from lmlab.model.models.base import LanguageModel
from lmlab.model.record import read_record
from lmlab.model.scoring import bits_per_byte, score
from lmlab.training import loop as training
from lmlab.training.status import ADVICE, how_it_diverged
from lmlab.training.step import TrainParams

SCHEDULE = "constant"


class Change(NamedTuple):
    """What becomes of the corpus."""

    corpus: str
    """Another one, a block of `corpora`; empty: the same with other ids."""
    seed: int
    """Which ids those are."""


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
    tree: Tree, data: Path, change: Change, steps: int, every: int, within: float
) -> dict[str, Any]:
    """Train the model in `data`/model on, after the change, for `steps`; the same from scratch; and
    say what became of both.

    All losses are bits per byte of validation, in windows that do not overlap. `before`: of the
    trained model on its own text; `level`: what counts as recovered, `within` above that;
    `at_once`: right after the change. For `adapted` and `from_scratch`: the `curve` of (tokens,
    loss), and `tokens_to_level` on the way (see `reached`), None if it did not get there; of one
    that diverged the curve ends there, and `diverged` says where and why. Raises UserError when
    params.yaml no longer names the model that was trained, or when that one diverged.
    """
    train = section(tree, "train", TrainParams)
    trained, saved = models.load(data / "model", use_device(train.device, train.threads))
    if diverged := how_it_diverged(saved):
        raise UserError(
            f"{data / 'model'} cannot go on: its training {diverged}; {ADVICE}, then `dvc repro"
            " train`"
        )
    chosen = registry.choices(tree, "train", train)
    if chosen["model"].record() != saved.model or train.context != saved.context:
        raise UserError(
            "params.yaml: train.model, its options or train.context are not those of"
            f" {data / 'model'}; run"
            " `dvc repro train` first, or set them back"
        )
    updates = {
        "steps": steps,
        "validate_every": every,
        "log_every": every,
        "sample_every": 0,
        "schedule": SCHEDULE,
    }
    train = train.model_copy(update=updates)
    chosen["schedule"] = registry.choose(tree, "schedules", SCHEDULE)
    file = data / "tokenizer" / sharding.TOKENIZER_FILE
    shards = open_shards(data / "shards", file)
    if saved.tokenizer_sha256 != shards.manifest["tokenizer_sha256"]:
        raise UserError(
            f"{data / 'model'} was trained with another tokenizer than {file}; run `dvc repro`"
        )
    with tempfile.TemporaryDirectory() as made:
        folder = Path(made)
        changed = (
            _of_corpus(tree, change.corpus, data, folder)
            if change.corpus
            else renamed(shards, change.seed)
        )
        before, at_once = _bits(trained, shards), _bits(trained, changed)
        begun = [[0, at_once]] if math.isfinite(at_once) else []
        level = before + within
        adapted, ended = _curve(
            train, chosen, changed, data, folder / "adapted", start=data / "model"
        )
        scratch, scratch_ended = _curve(
            train, chosen, changed, data, folder / "from_scratch", start=None
        )
    return {
        "change": change._asdict(),
        "before": before,
        "level": level,
        "at_once": at_once,
        "adapted": _told([*begun, *adapted], level, ended),
        "from_scratch": _told(scratch, level, scratch_ended),
    }


def _of_corpus(tree: Tree, name: str, data: Path, folder: Path) -> Shards:
    """Another corpus, cut and split as `download` would, in the trained model's tokenizer."""
    choice = registry.choose(tree, "corpora", name)
    download = section(tree, "download", DownloadParams).model_copy(update={"corpus": name})
    collecting.build(download, choice.build(), folder / "corpus")
    sharding.build(
        section(tree, "shard", ShardParams),
        folder / "corpus",
        data / "tokenizer",
        folder / "shards",
    )
    return open_shards(folder / "shards", data / "tokenizer" / sharding.TOKENIZER_FILE)


def _bits(model: LanguageModel, shards: Shards) -> float:
    try:
        scored = score(model, shards.stream("validation"), shards.bos, model.context, model.context)
    except FloatingPointError:  # on a text so strange to it that a logit is NaN
        return math.inf
    return bits_per_byte(scored.nats, shards.count("validation", "bytes"))


def _curve(
    params: TrainParams,
    chosen: dict[str, Choice],
    shards: Shards,
    data: Path,
    folder: Path,
    start: Path | None,
) -> tuple[list[list[float]], str]:
    """(tokens, bits per byte on validation) along a run; and how it diverged, empty if it did
    not.
    """
    tokenizer = tokenizers.load(data / "tokenizer" / sharding.TOKENIZER_FILE)
    folders = training.RunFolders(folder / "model", folder / "log")
    training.train(params, chosen, shards, tokenizer, folders, start)
    rows = [
        json.loads(line)
        for line in (folder / "log" / "log.jsonl").read_text(encoding="utf-8").splitlines()
    ]
    key = "validation_bits_per_byte"
    ended = how_it_diverged(read_record(folder / "model"))
    return [[row["tokens"], row[key]] for row in rows if key in row], ended


def _told(curve: list[list[float]], level: float, diverged: str) -> dict[str, Any]:
    tokens, bits = [row[0] for row in curve], [row[1] for row in curve]
    found = {"tokens_to_level": reached(tokens, bits, level), "curve": curve}
    return {**found, "diverged": diverged} if diverged else found


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
