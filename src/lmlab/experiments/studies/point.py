"""One run of a study: from the tokenizer to the evaluation, in a folder that does not stay."""

import json
import os
import tempfile
from collections.abc import Iterable
from contextlib import redirect_stdout
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import torch

from lmlab.core import params, registry
from lmlab.core.params import Tree, changed
from lmlab.data.shards import Shards, open_shards
from lmlab.evaluation.probe import ProbeParams
from lmlab.experiments.stages.layout import Layout
from lmlab.experiments.stages.probe import probe
from lmlab.experiments.stages.shard import shard
from lmlab.experiments.stages.tokenizer import tokenizer
from lmlab.experiments.stages.train import train
from lmlab.model.record import read_record
from lmlab.training import step
from lmlab.training.cost import forward_flops, training_flops
from lmlab.training.status import how_it_diverged
from lmlab.training.step import TrainParams

WINDOWS = 8
"""Of text that snapshots are looked at with."""
MOST_ROWS = 25
"""Of a run's curve that are kept."""
PROBES = ["cost", "gradient_angle"]
TIMES = ("training_seconds", "validation_seconds", "tokens_per_second")


def run_quietly(tree: Tree, flops: float, corpus: Path) -> dict[str, Any]:
    """`run` without a word."""
    with open(os.devnull, "w") as nowhere, redirect_stdout(nowhere):
        return run(tree, flops, corpus)


def run(tree: Tree, flops: float, corpus: Path) -> dict[str, Any]:
    """What a run with these params measured, as plain values for JSON.

    With `flops` it takes as many steps as these pay for. Of a run that diverged, `diverged` says
    at which step and why, and beside it is only the curve until there.
    """
    with tempfile.TemporaryDirectory() as folder:
        layout = replace(Layout.below(Path(folder)), corpus=corpus)
        tokenizer(tree, layout)
        shard(tree, layout)
        shards = open_shards(layout.shards, layout.tokenizer_file)
        if flops:
            steps = _steps_within(tree, shards.vocabulary_size, flops)
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
            "bytes_per_token": _bytes_per_token(shards),
            "parameters": record.parameters,
            "steps": record.steps,
            "tokens": tokens,
            "flops": training_flops(record.forward_flops_per_token, tokens),
            **{name: times[name] for name in TIMES},
            **(_look(tree, layout) if params.block(tree, "train")["snapshots"] else {}),
            **curves,
        }


def _steps_within(tree: Tree, vocabulary_size: int, flops: float) -> int:
    """How many training steps some FLOPs pay for."""
    section = params.section(tree, "train", TrainParams)
    choices = registry.choices(tree, "train", section)
    begun = step.begin(section, choices, vocabulary_size, torch.device("cpu"))
    tokens_per_step = begun.params.batch * begun.params.context
    return max(1, round(flops / training_flops(forward_flops(begun.model), tokens_per_step)))


def _bytes_per_token(shards: Shards) -> float:
    return shards.count("validation", "bytes") / shards.count("validation", "tokens")


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
