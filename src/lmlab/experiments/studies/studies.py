"""Studies: arms that are compared, each many small runs, and the table of what they measured.

A study is a folder with a params.yaml. Its section `study` says what all runs share; each block of
`arms` is one of the things compared. An arm may sweep some values first; then it runs with all
seeds at the best of them, so that every arm is judged at its own. A run goes through tokenizer,
shards, training and evaluation in a folder of its own that does not stay. What it measured does:
under a key of its params, its corpus and the code, so that an arm that was stopped, or is given
more seeds or values, runs only what is missing.
"""

import hashlib
import itertools
import json
import math
import multiprocessing
import os
import signal
import tempfile
from collections.abc import Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import redirect_stdout
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from pydantic import Field

from lmlab.core import lifeline, params, registry
from lmlab.core.errors import UserError
from lmlab.core.files import read_json, seal, sha256, whole_file, write_json
from lmlab.core.params import Params, Tree, Values, changed
from lmlab.data import collect as collecting
from lmlab.data import documents
from lmlab.data import shard as sharding
from lmlab.data.collect import DownloadParams
from lmlab.data.shard import ShardParams
from lmlab.data.shards import Shards, open_shards
from lmlab.data.tokenizers import base as tokenizers
from lmlab.data.tokenizers.base import Tokenizer, TokenizerParams
from lmlab.evaluation import probe as probing
from lmlab.evaluation.probe import ProbeParams
from lmlab.experiments import preflight
from lmlab.model.record import read_record
from lmlab.training import loop as training
from lmlab.training import step as stepping
from lmlab.training.cost import forward_flops, training_flops
from lmlab.training.status import how_it_diverged
from lmlab.training.step import TrainParams

WINDOWS = 8
"""Of text that snapshots are looked at with."""
MOST_ROWS = 25
"""Of a run's curve that are kept."""
BITS = "validation_bits_per_byte"
"""A column of results.csv."""


class StudyParams(Params):
    """A study's params.yaml: the section `study`."""

    changes: Values
    """To the project's own params.yaml, in all runs."""
    flops: float = Field(ge=0)
    """FLOPs each run may spend on training; 0: as many steps as `train.steps` says."""
    each: str
    """The key that an arm's name is a value of, such as train.learning_rule; may be empty."""
    sweep: dict[str, list[Any]]
    """For arms that have none of their own: values to try for each key, all combinations; `key*`
    holds factors.
    """
    sweep_seeds: list[int] = Field(min_length=1)
    """What each of an arm's swept values is run with."""
    seeds: list[int]
    """What an arm is run with at the best of its swept values."""
    reference: str
    """The arm whose cost is 1; may be empty."""
    processes: int = Field(ge=0)
    """Runs at a time; 0: one per core. Each should train on one thread."""


class ArmParams(Params):
    """A study's params.yaml: a block of `arms`, which may be empty."""

    changes: Values = {}
    sweep: dict[str, list[Any]] | None = None
    sweep_seeds: list[int] | None = Field(default=None, min_length=1)


@dataclass(frozen=True)
class Study:
    """A study's folder and its params, whole or made quick."""

    folder: Path
    params: StudyParams
    arms: dict[str, ArmParams]

    def arm(self, name: str) -> tuple[Values, dict[str, list[Any]]]:
        """What an arm changes and what it sweeps. Any value of the key `each` is one, whether it
        has a block or not.
        """
        if name not in self.arms and not self.params.each:
            raise UserError(
                f"{self.folder / 'params.yaml'}: arms has no {name!r};"
                f" {params.nearest(name, self.arms)}"
            )
        arm = self.arms.get(name, ArmParams())
        by_name = {self.params.each: name} if self.params.each else {}
        return {**by_name, **arm.changes}, self.params.sweep if arm.sweep is None else arm.sweep

    def sweep_seeds(self, name: str) -> list[int]:
        """What each of an arm's swept values is run with: its own, or what all arms share."""
        return self.arms.get(name, ArmParams()).sweep_seeds or self.params.sweep_seeds


def read(folder: Path, quick: bool = False) -> Study:
    """A study, or its quick form: what the section `quick` says takes the place of `study`'s, and
    its `arms` of the arms'.

    Raises UserError.
    """
    tree = params.read(folder / "params.yaml")
    shared = dict(params.block(tree, "study"))
    blocks = {name: dict(params.block(tree, f"arms.{name}")) for name in params.block(tree, "arms")}
    if quick:
        for key, value in params.block(tree, "quick").items():
            if key != "arms":
                shared[key] = {**shared[key], **value} if key == "changes" else value
        for name in params.block(tree, "quick.arms"):
            if name not in blocks:
                raise UserError(
                    f"{folder / 'params.yaml'}: quick.arms.{name} is no arm;"
                    f" {params.nearest(name, blocks)}"
                )
            blocks[name] |= params.block(tree, f"quick.arms.{name}")
    study = params.section({"study": shared}, "study", StudyParams)
    arms = {name: params.section({"arms": blocks}, f"arms.{name}", ArmParams) for name in blocks}
    return Study(folder, study, arms)


def build_corpus(study: Study, target: Path) -> dict[str, Any]:
    """Make the corpus that the study's own `download.*` name, for a study that does not take the
    project's; its manifest.
    """
    tree = changed(params.read(), study.params.changes)
    preflight.check(tree)
    download = params.section(tree, "download", DownloadParams)
    return collecting.build(
        download, registry.choices(tree, "download", download)["corpus"].build(), target
    )


def _value(tree: Tree, dotted: str) -> Any:
    block, _, key = dotted.removesuffix("*").rpartition(".")
    return params.block(tree, block)[key]


def run_arm(study: Study, name: str, corpus: Path, target: Path) -> dict[str, Any]:
    """Run one arm and write `target`: its sweep, the best of it (bits per byte on validation), all
    seeds at the best.
    """
    changes, sweep = study.arm(name)
    if not (corpus / "train.parquet").exists():
        stage = "download" if corpus == Path("data/corpus") else f"{study.folder}/dvc.yaml:corpus"
        raise UserError(f"{corpus} holds no corpus; run `dvc repro {stage}` first")
    tree = changed(changed(params.read(), study.params.changes), changes)
    grid = [dict(zip(sweep, values, strict=True)) for values in itertools.product(*sweep.values())]
    swept = [(at, seed) for at in grid for seed in study.sweep_seeds(name)]
    points = run_points(study, tree, swept, corpus)

    def mean(at: Values) -> float:
        costs = [
            _cost(point) for (where, _), point in zip(swept, points, strict=True) if where == at
        ]
        return sum(costs) / len(costs)

    best = min(grid, key=mean)
    points += run_points(
        study,
        tree,
        [(best, seed) for seed in study.params.seeds if (best, seed) not in swept],
        corpus,
    )
    found = {"arm": name, "best": _resolved(tree, best), "points": points}
    write_json(target, seal(found))
    return found


def _cost(point: dict[str, Any]) -> float:
    return float(point["validation"]["bits_per_byte"]) if "validation" in point else math.inf


def _resolved(tree: Tree, at: Values) -> Values:
    """What the swept keys come to."""
    there = changed(tree, at)
    return {key.removesuffix("*"): _value(there, key) for key in at}


def run_points(
    study: Study, tree: Tree, wanted: Iterable[tuple[Values, int]], corpus: Path
) -> list[dict[str, Any]]:
    """Runs with some values and a seed each, side by side; those whose result is kept already are
    not run again.
    """
    keys, works = [], {}
    for at, seed in wanted:
        there = changed(tree, {**at, "train.seed": seed, "train.data_seed": seed})
        preflight.check(there)
        work = (there, study.params.flops, corpus)
        label = {"at": _resolved(tree, at), "seed": seed}
        keys.append((_kept(work), label))
        if not _is_whole(_kept(work)):
            works[_kept(work)] = work
    for path, found in _side_by_side(works, study.params.processes or os.cpu_count() or 1):
        path.parent.mkdir(parents=True, exist_ok=True)
        write_json(path, seal(found))
        bits = f"{_cost(found):.4f} bits/byte" if "validation" in found else found["broke"]
        label = next(label for key, label in keys if key == path)
        print(f"{study.folder.name}: {label['at']}, seed {label['seed']}: {bits}", flush=True)
    return [{**label, **read_json(path, made_by="arm")} for path, label in keys]


def _is_whole(path: Path) -> bool:
    """Whether a kept result is there as it was written; else the run is done again."""
    try:
        read_json(path, made_by="arm")
    except UserError:
        return False
    return True


Work = tuple[Tree, float, Path]


def _kept(work: Work) -> Path:
    """Where the result of a run stays, by all that decides it."""
    tree, flops, corpus = work
    decides = {
        "params": tree,
        "flops": flops,
        "corpus": {path.name: sha256(path) for path in sorted(corpus.glob("*.parquet"))},
        "tokenizer": sha256(given)
        if (given := params.section(tree, "tokenizer", TokenizerParams).given)
        else "",
        "code": _code(),
        "torch": torch.__version__,
    }
    key = hashlib.sha256(json.dumps(decides, sort_keys=True).encode()).hexdigest()[:20]
    return Path(os.environ.get("DVC_ROOT", ".")) / ".scratch" / "points" / f"{key}.json"


@cache
def _code() -> dict[str, str]:
    package = Path(__file__).parents[1]
    return {str(path.relative_to(package)): sha256(path) for path in sorted(package.rglob("*.py"))}


def _side_by_side(works: dict[Path, Work], processes: int) -> Iterator[tuple[Path, dict[str, Any]]]:
    if min(processes, len(works)) <= 1:
        for path, work in works.items():
            yield path, quiet_point(*work)
        return
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(processes, context, initializer=lifeline.stop_with_parent) as pool:
        # what ignores Ctrl-C when it is started goes on to: it is for the parent to answer, in one
        # line
        answer = signal.signal(signal.SIGINT, signal.SIG_IGN)
        results = {path: pool.submit(quiet_point, *work) for path, work in works.items()}
        signal.signal(signal.SIGINT, answer)
        try:
            for path, result in results.items():
                yield path, result.result()
        except BaseException:
            for worker in multiprocessing.active_children():
                worker.terminate()
            raise


def quiet_point(tree: Tree, flops: float, corpus: Path) -> dict[str, Any]:
    """`run_point` without a word."""
    with open(os.devnull, "w") as nowhere, redirect_stdout(nowhere):
        return run_point(tree, flops, corpus)


def run_point(tree: Tree, flops: float, corpus: Path) -> dict[str, Any]:
    """Everything from the tokenizer to the evaluation with these params; what it measured, as plain
    values for JSON.

    Of a run that diverged that is what was found: `broke` says where, and beside it is only the
    curve until there.
    """
    with tempfile.TemporaryDirectory() as made:
        folder = Path(made)
        asked = params.section(tree, "tokenizer", TokenizerParams)
        chosen = registry.choices(tree, "tokenizer", asked)["name"]
        tokenizer = tokenizers.made(
            asked, chosen, (text for _, _, text in documents.read_parts(corpus / "train.parquet"))
        )
        tokenizers.save(chosen, tokenizer, folder / "tokenizer" / "tokenizer.json")
        sharding.build(
            params.section(tree, "shard", ShardParams),
            corpus,
            folder / "tokenizer",
            folder / "shards",
        )
        shards = open_shards(folder / "shards", folder / "tokenizer" / "tokenizer.json")

        train = params.section(tree, "train", TrainParams)
        choices = registry.choices(tree, "train", train)
        if flops:
            train = _within(train, choices, shards.vocabulary_size, flops)
        folders = training.RunFolders(folder / "model", folder / "log", folder / "snapshots")
        timing = training.train(train, choices, shards, tokenizer, folders)
        saved = read_record(folder / "model")
        rows = [
            json.loads(line)
            for line in (folder / "log" / "log.jsonl").read_text(encoding="utf-8").splitlines()
        ]
        curves = {
            "curve": [
                [row["step"], row["validation_nats"]] for row in rows if "validation_nats" in row
            ],
            "training": _thinned(
                [[row["step"], row["train_nats"]] for row in rows if "train_nats" in row]
            ),
        }
        made_with = {"environment": {"torch": torch.__version__}}
        if diverged := how_it_diverged(saved):
            return {"broke": diverged, **curves, **made_with}
        last = [row for row in rows if "validation_nats" in row][
            -1
        ]  # at the end of training, in the same windows
        bits, nats = last["validation_bits_per_byte"], last["validation_nats"]
        looked = _looked(tree, train, shards, tokenizer, folder) if train.snapshots else {}
        spent = training_flops(saved.forward_flops_per_token, saved.tokens)
        return {
            "validation": {"bits_per_byte": bits, "nats_per_token": nats},
            "vocabulary_size": shards.vocabulary_size,
            "bytes_per_token": shards.count("validation", "bytes")
            / shards.count("validation", "tokens"),
            "parameters": saved.parameters,
            "steps": saved.steps,
            "tokens": saved.tokens,
            "flops": spent,
            "training_seconds": timing.training_seconds,
            "validation_seconds": timing.validation_seconds,
            "tokens_per_second": timing.tokens_per_second,
            **looked,
            **curves,
            **made_with,
        }


def _looked(
    tree: Tree, train: TrainParams, shards: Shards, tokenizer: Tokenizer, folder: Path
) -> dict[str, Any]:
    """What a call of the rule costs, and at each snapshot the cosine of its gradient with the true
    one.
    """
    probe = ProbeParams(
        probes=["cost", "gradient_angle"],
        windows=WINDOWS,
        text="",
        device=train.device,
        threads=train.threads,
    )
    timed = probing.look(
        probe,
        probing.chosen(tree, probe),
        shards,
        tokenizer,
        folder / "snapshots",
        folder / "probes",
    )
    readings = pd.read_parquet(folder / "probes" / "probes.parquet")
    angles = readings.query("probe == 'gradient_angle' and measure == 'rule' and where == 'all'")
    costs = {
        key.split(".")[1]: value for key, value in timed.items() if key.split(".")[2] == "rule"
    }
    return {
        "step_seconds": costs["seconds"],
        "step_bytes": costs["peak_bytes"],
        "angle": angles[["tokens", "value"]].to_numpy().tolist(),
    }


def _thinned(rows: list[list[float]]) -> list[list[float]]:
    """At most MOST_ROWS of them, the last included."""
    every = -(-len(rows) // MOST_ROWS)
    return rows[::-1][:: max(1, every)][::-1]


def _within(
    train: TrainParams, choices: dict[str, registry.Choice], vocabulary_size: int, flops: float
) -> TrainParams:
    """The same with as many steps as the FLOPs pay for."""
    run = stepping.begin(train, choices, vocabulary_size, torch.device("cpu"))
    tokens = run.params.batch * run.params.context
    a_step = training_flops(forward_flops(run.model), tokens)
    return train.model_copy(update={"steps": max(1, round(flops / a_step))})


def collect(points: Path, target: Path) -> pd.DataFrame:
    """All runs of the arms in a folder as one table, written as CSV too: arms by name, values and
    seeds as they were run.

    `at_best` marks the runs at the value that the arm's sweep found best.
    """
    rows = []
    for path in sorted(points.glob("*.json")):
        arm = read_json(path, made_by="arm")
        for point in arm["points"]:
            of_splits = {
                f"{split}_{key}": value
                for split in ("validation", "test")
                for key, value in point.get(split, {}).items()
            }
            plain = {
                key: value for key, value in point.items() if not isinstance(value, dict | list)
            }
            rows.append(
                {
                    "arm": arm["arm"],
                    **point["at"],
                    "at_best": point["at"] == arm["best"],
                    **of_splits,
                    **plain,
                }
            )
    if not rows:
        raise UserError(f"{points} holds no points; run `dvc repro {points.parent}/dvc.yaml`")
    table = pd.DataFrame(rows)
    if BITS not in table:  # every run diverged
        table[BITS] = math.nan
    with whole_file(target) as partial:
        table.to_csv(partial, index=False, lineterminator="\n")
    return table
