"""The arms of a study, run: what is missing or stale, side by side; every result is kept.

An arm's file, points/<arm>.json, says what its points were made with. Points that still are what
they would be made with now are not run again; a run's result is also kept in .scratch, so that an
arm that was stopped goes on where it was.
"""

import json
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from pydantic import ValidationError

from lmlab.core import params
from lmlab.core.errors import UserError
from lmlab.core.files import read_json, seal, write_json
from lmlab.core.params import Tree, Values, changed
from lmlab.core.scratch import scratch_folder
from lmlab.data.start import FROM_SCRATCH
from lmlab.experiments import preflight
from lmlab.experiments.stages.download import download
from lmlab.experiments.stages.layout import Layout
from lmlab.experiments.studies import records, workers
from lmlab.experiments.studies.making import differences, key, making
from lmlab.experiments.studies.point import First
from lmlab.experiments.studies.records import ArmRecord, Making, Point, Result
from lmlab.experiments.studies.study import Arm, Study, from_scratch, resolved
from lmlab.experiments.studies.workers import Task

PROJECT_CORPUS = Path("data/corpus")
NEVER_SAID = "its points do not say what they were made with: they are older than that"


@dataclass(frozen=True)
class Planned:
    """A run that an arm needs."""

    arm: str
    values: Values
    """Of the swept keys, factors multiplied out."""
    seed: int
    reported: bool
    """Whether it is one of those that the table is made of, or of the sweep."""
    tree: Tree
    first: First | None
    """The run that it goes on from."""
    flops: float
    corpus: Path
    kept: Path
    """Where its result stays until the arm's file is written, and after."""

    @property
    def task(self) -> Task:
        return Task(self.tree, self.flops, self.corpus, self.first)

    def point(self, result: Result) -> Point:
        """The run with what it measured."""
        return Point(at=self.values, seed=self.seed, reported=self.reported, result=result)


def corpus_of(study: Study) -> Path:
    """The text of a study: the project's, or its own where its changes name one."""
    sections = {key.split(".")[0] for key in study.params.changes}
    return study.folder / "corpus" if sections & {"download", "corpora"} else PROJECT_CORPUS


def make_corpus(study: Study) -> Path:
    """The folder of the study's text. Its own is made where it is missing or another is asked for.

    Raises UserError where the project's is missing.
    """
    corpus = corpus_of(study)
    if corpus == PROJECT_CORPUS:
        if not (corpus / "train.parquet").exists():
            raise UserError(f"{corpus} holds no corpus; run `dvc repro download` first")
        return corpus
    tree = changed(from_scratch(), study.params.changes)
    names = ("download", f"corpora.{tree['download']['corpus']}")
    asked = {name: dict(params.block(tree, name)) for name in names}
    note = corpus.with_name("corpus.json")
    is_there = (corpus / "manifest.json").exists() and note.exists()
    if not is_there or json.loads(note.read_text(encoding="utf-8")) != asked:
        preflight.check(tree)
        layout = Layout.below(study.folder)
        download(tree, layout)
        write_json(note, asked)
    return corpus


def run_arm(study: Study, name: str, corpus: Path, run: workers.Run) -> ArmRecord:
    """Run what an arm lacks, write its file of points, and return what stands in it: its sweep, the
    best of it by mean bits per byte on validation, and all reported seeds at the best.
    """
    arm, tree, target = study.arm(name), study.tree(name), study.points(name)
    made = making(tree, _swept(arm), study.params.flops, corpus, study.first_tree(name))
    before = _still_valid(target, made)
    sweep = [(values, seed) for values in arm.grid for seed in arm.sweep_seeds] if arm.sweep else []
    plans = [_plan(study, arm, made, corpus, tree, *each, reported=False) for each in sweep]
    swept = _results(study, plans, before, run)
    best = _best(arm, swept)
    final = [
        _plan(study, arm, made, corpus, tree, best, seed, reported=True)
        for seed in study.params.seeds
    ]
    results = swept + _results(study, final, before, run)
    points = [plan.point(result) for plan, result in zip(plans + final, results, strict=True)]
    record = ArmRecord(arm=name, best=resolved(tree, best), made=made, points=points)
    if before != record:
        target.parent.mkdir(parents=True, exist_ok=True)
        write_json(target, seal(record.as_json()))
    return record


def stale(study: Study, name: str, corpus: Path) -> list[str]:
    """Why the points of an arm are not those that a run would give now; empty where they are."""
    file = study.points(name)
    if not file.exists():
        return ["it has not been run"]
    record = records.read(file)
    if record.made is None:
        return [NEVER_SAID]
    arm = study.arm(name)
    first = study.first_tree(name)
    now = making(study.tree(name), _swept(arm), study.params.flops, corpus, first)
    return [*differences(record.made, now), *_missing(study, arm, record)]


def _missing(study: Study, arm: Arm, record: ArmRecord) -> Iterator[str]:
    """The seeds and swept values that a file lacks."""
    tree = study.tree(arm.name)
    existing = [(each.at, each.seed, each.reported) for each in record.points]
    for seed in study.params.seeds:
        if (record.best, seed, True) not in existing:
            yield f"seed {seed} is missing"
    for values in arm.grid if arm.sweep else []:
        for seed in arm.sweep_seeds:
            if (resolved(tree, values), seed, False) not in existing:
                yield f"of the sweep {resolved(tree, values)}, seed {seed}, is missing"


def _swept(arm: Arm) -> set[str]:
    return {key_.removesuffix("*") for key_ in arm.sweep}


def _still_valid(target: Path, made: Making) -> ArmRecord | None:
    """What stands in an arm's file, where it was made with just the same."""
    if not target.exists():
        return None
    try:
        record = records.read(target)
    except UserError:  # not as it was written: it is made again
        return None
    return record if record.made == made else None


def _plan(
    study: Study,
    arm: Arm,
    made: Making,
    corpus: Path,
    tree: Tree,
    values: Values,
    seed: int,
    reported: bool,
) -> Planned:
    seeds = {"train.seed": seed, "train.data_seed": seed}
    run_tree, first_tree = changed(tree, {**values, **seeds}), study.first_tree(arm.name)
    preflight.check(changed(run_tree, FROM_SCRATCH), has_start=first_tree is not None)
    first = None
    if first_tree is not None:
        first_tree = changed(first_tree, seeds)
        preflight.check(first_tree)
        first = First(first_tree, key(making(first_tree, set(), 0, corpus), {}, seed))
    at = resolved(tree, values)
    kept = scratch_folder("points") / f"{key(made, at, seed)}.json"
    flops = study.params.flops
    return Planned(arm.name, at, seed, reported, run_tree, first, flops, corpus, kept)


def _results(
    study: Study, plans: list[Planned], before: ArmRecord | None, run: workers.Run
) -> list[Result]:
    """What the planned runs measured: from the arm's file, from what is kept, or by running."""
    kept_points = before.points if before else []
    known = {_name(each.at, each.seed): each.result for each in kept_points}
    results: dict[Path, Result] = {}
    missing: dict[Path, Planned] = {}
    for plan in plans:
        result = known.get(_name(plan.values, plan.seed)) or _read_kept(plan.kept)
        if result is None:
            missing[plan.kept] = plan
        else:
            results[plan.kept] = result
    plans_left = list(missing.values())
    measurements = run([plan.task for plan in plans_left])
    for number, (plan, values) in enumerate(zip(plans_left, measurements, strict=True), 1):
        result = Result.model_validate(values)
        plan.kept.parent.mkdir(parents=True, exist_ok=True)
        write_json(plan.kept, seal(result.values()))
        results[plan.kept] = result
        measured = result.diverged or f"{_bits(result):.4f} bits/byte"
        where = ", ".join(f"{name} {value:g}" for name, value in plan.values.items())
        print(
            f"{study.name}: {plan.arm}: {number} of {len(missing)}:"
            f" {where + ', ' if where else ''}seed {plan.seed}: {measured}",
            flush=True,
        )
    return [results[plan.kept] for plan in plans]


def _name(values: Values, seed: int) -> tuple[str, int]:
    return json.dumps(values, sort_keys=True), seed


def _best(arm: Arm, results: list[Result]) -> Values:
    """The combination of swept values with the fewest bits per byte, in the mean over its seeds."""
    if not arm.sweep:
        return {}
    count = len(arm.sweep_seeds)
    bits = [_bits(result) for result in results]
    means = [sum(bits[start : start + count]) / count for start in range(0, len(bits), count)]
    return arm.grid[means.index(min(means))]


def _bits(result: Result) -> float:
    """Bits per byte on validation; infinite for a run that diverged."""
    return result.validation.bits_per_byte if result.validation else math.inf


def _read_kept(path: Path) -> Result | None:
    """A kept result; None where it is missing or not as it was written: it is made again."""
    try:
        return Result.model_validate(read_json(path, made_by="study"))
    except (UserError, ValidationError):
        return None
