"""One run of a study: from the tokenizer to the evaluation, in a folder that does not stay."""

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterable
from contextlib import redirect_stdout
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd
import torch

from lmlab.core import files, params, registry
from lmlab.core.errors import UserError
from lmlab.core.params import Tree, changed
from lmlab.core.scratch import alone, scratch_folder
from lmlab.data.shards import open_shards
from lmlab.data.start import MODEL, RECORD, STATE, TOKENIZER, EarlierRun, StartRecord
from lmlab.evaluation.probe import ProbeParams
from lmlab.experiments.stages.layout import Layout
from lmlab.experiments.stages.probe import probe
from lmlab.experiments.stages.shard import shard
from lmlab.experiments.stages.tokenizer import tokenizer
from lmlab.experiments.stages.train import train
from lmlab.model.record import ModelRecord, earlier_run, read_record
from lmlab.training import step
from lmlab.training.cost import forward_flops, training_flops
from lmlab.training.status import how_it_diverged
from lmlab.training.step import TrainParams

WINDOWS = 8
"""Of text that snapshots are looked at with."""
MOST_ROWS = 25
"""Of a run's curve that are kept."""
PROBES = ["cost", "gradient_angle"]
BITS = "validation_bits_per_byte"
"""A key of the log."""
TIMES = ("training_seconds", "validation_seconds", "tokens_per_second")


class First(NamedTuple):
    """A run that others go on from."""

    tree: Tree
    """Its params."""
    key: str
    """The name of its result, by all that decides it."""


def run_quietly(
    tree: Tree, flops: float, corpus: Path, first: First | None = None
) -> dict[str, Any]:
    """`run` without a word."""
    with open(os.devnull, "w") as nowhere, redirect_stdout(nowhere):
        return run(tree, flops, corpus, first)


def run(tree: Tree, flops: float, corpus: Path, first: First | None = None) -> dict[str, Any]:
    """What a run with these params measured, as plain values for JSON. `first` is the run that it
    goes on from, which is made where it has not been made yet.

    With `flops` it takes as many steps as these pay for, after the first run's. Of a run that
    diverged, `diverged` says at which step and why, and beside it is only the curve until there.
    """
    with tempfile.TemporaryDirectory() as folder:
        layout = replace(Layout.below(Path(folder)), corpus=corpus)
        before: EarlierRun | None = None
        if first is not None:
            layout = replace(layout, start=begun(first, corpus))
            start = files.read_record(layout.start / RECORD, StartRecord, made_by="study")
            before = start.earlier[-1]
            tree = changed(tree, {"start.commit": start.commit, "start.model": start.model})
        tokenizer(tree, layout)
        shard(tree, layout)
        shards = open_shards(layout.shards, layout.tokenizer_file)
        if flops:
            left = flops - (before.flops if before else 0)
            steps = _steps_within(tree, shards.vocabulary_size, left)
            tree = changed(tree, {"train.steps": steps})
        times = train(tree, layout)
        record = read_record(layout.model)
        log = layout.log.read_text(encoding="utf-8")
        rows = [json.loads(line) for line in log.splitlines()]
        curves = {
            "curve": _column(rows, "validation_nats"),
            "training": _thinned(_column(rows, "train_nats")),
        }
        if diverged := how_it_diverged(record):
            return {"diverged": diverged, **curves}
        last = [row for row in rows if "validation_nats" in row][-1]
        tokens = record.tokens
        return {
            "validation": {
                "bits_per_byte": last["validation_bits_per_byte"],
                "nats_per_token": last["validation_nats"],
            },
            "vocabulary_size": shards.vocabulary_size,
            "bytes_per_token": shards.bytes_per_token("validation"),
            "parameters": record.parameters,
            "steps": record.steps,
            "tokens": tokens,
            "bytes": record.bytes,
            "flops": record.flops,
            **(_since(record, before) if before else {}),
            **{name: times[name] for name in TIMES},
            **(_look(tree, layout) if params.block(tree, "train")["snapshots"] else {}),
            **curves,
        }


def begun(first: First, corpus: Path) -> Path:
    """The folder of a run for others to go on from, as the stage `start` lays one out. It is made
    once and kept; others that need it wait.
    """
    home = scratch_folder(f"firsts/{first.key}")
    with alone(home, on_wait=lambda: None):
        if not (home / "run").exists():
            with tempfile.TemporaryDirectory() as folder:
                layout = replace(Layout.below(Path(folder)), corpus=corpus)
                tokenizer(first.tree, layout)
                shard(first.tree, layout)
                train(first.tree, layout)
                _lay_out(first, layout, home / "run")
    return home / "run"


def _lay_out(first: First, layout: Layout, folder: Path) -> None:
    saved = read_record(layout.model)
    if diverged := how_it_diverged(saved):
        raise UserError(f"the run to go on from {diverged}; change `first` in the study")
    train_params = params.block(first.tree, "train")
    made_with = {
        "download.corpus": params.block(first.tree, "download")["corpus"],
        "train.learning_rule": train_params["learning_rule"],
        "train.optimizer": train_params["optimizer"],
    }
    rows = [json.loads(line) for line in layout.log.read_text(encoding="utf-8").splitlines()]
    bits = [row[BITS] for row in rows if BITS in row][-1]
    commit = hashlib.sha1(first.key.encode(), usedforsecurity=False).hexdigest()
    earlier = earlier_run(saved, commit, f"study:{first.key}", made_with, bits)
    record = StartRecord(commit=commit, model=saved.weights_sha256, earlier=[earlier])
    with files.whole_folder(folder) as partial:
        shutil.copytree(layout.model, partial / MODEL)
        shutil.copytree(layout.tokenizer, partial / TOKENIZER)
        shutil.copytree(layout.state, partial / STATE)
        files.write_json(partial / RECORD, record.record())


def _since(record: ModelRecord, before: EarlierRun) -> dict[str, Any]:
    """What a run that goes on from another one spent itself, and where it began."""
    return {
        "own_steps": record.steps - before.steps,
        "own_bytes": record.bytes - before.bytes,
        "own_flops": record.flops - before.flops,
        "bits_per_byte_before": before.bits_per_byte,
    }


def _steps_within(tree: Tree, vocabulary_size: int, flops: float) -> int:
    """How many training steps some FLOPs pay for."""
    section = params.section(tree, "train", TrainParams)
    choices = registry.choices(tree, "train", section)
    begun = step.begin(section, choices, vocabulary_size, torch.device("cpu"))
    tokens_per_step = begun.params.batch * begun.params.context
    return max(1, round(flops / training_flops(forward_flops(begun.model), tokens_per_step)))


def _look(tree: Tree, layout: Layout) -> dict[str, Any]:
    """What a call of the rule costs, and at each snapshot the cosine of its gradient with the true
    one.
    """
    section = params.block(tree, "train")
    options = ProbeParams(
        probes=PROBES,
        windows=WINDOWS,
        text="",
        device=section["device"],
        processes=1,
        threads=section["threads"],
    )
    timed = probe({**tree, "probe": options.model_dump()}, layout)
    costs = {
        key.split(".")[1]: value for key, value in timed.items() if key.split(".")[2] == "rule"
    }
    readings = pd.read_parquet(layout.probes / "probes.parquet")
    of_rule = "probe == 'gradient_angle' and measure == 'rule' and where == 'all'"
    angles = readings.query(of_rule)[["tokens", "value"]]
    return {
        "step_seconds": costs["seconds"],
        "step_bytes": costs["peak_bytes"],
        "angle": angles.to_numpy().tolist(),
    }


def _column(rows: Iterable[dict[str, Any]], name: str) -> list[list[float]]:
    """(step, value) of the log's rows that have one."""
    return [[row["step"], row[name]] for row in rows if name in row]


def _thinned(rows: list[list[float]]) -> list[list[float]]:
    """At most MOST_ROWS of them, evenly spaced, the last included."""
    every = max(1, -(-len(rows) // MOST_ROWS))
    return rows[::-1][::every][::-1]
