"""The points of a study as runs: what `lmlab study` writes into points/<arm>.json."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pandas as pd
from pydantic import BaseModel, ConfigDict

from lmlab.core import params
from lmlab.core.errors import UserError
from lmlab.experiments.commands import leaves
from lmlab.experiments.compare.run import Run, numbers
from lmlab.experiments.studies import study as studies
from lmlab.experiments.studies.study import Study

OLD_NAMES = {"operations": "flops", "vocabulary": "vocabulary_size", "broke": "diverged"}
"""What points were called before they said what they were made with."""


class Point(BaseModel):
    """One run of an arm. Its other keys are measures, in nested blocks."""

    model_config = ConfigDict(frozen=True, extra="allow")

    at: dict[str, Any]
    """The swept values, by dotted key."""
    seed: int
    reported: bool | None = None
    """Whether it is one of the runs that the table is made of; None in old points."""
    diverged: str = ""
    """At which step it diverged and why; empty if it did not."""
    environment: dict[str, str] = {}
    training: list[Any] = []
    """Rows of step and nats."""
    curve: list[Any] = []
    """Rows of step and nats, of the validation split."""


class Made(BaseModel):
    """What the points of an arm were made with, as far as it is read here."""

    params: dict[str, Any]
    versions: dict[str, str] = {}


class Arm(BaseModel):
    """A file of points."""

    best: dict[str, Any]
    """The swept values that did best."""
    made: Made | None = None
    """None in old points, which do not say it."""
    points: list[Point]


def is_study(folder: Path) -> bool:
    """Whether a folder is that of a study with results."""
    return (folder / "points").is_dir() and (folder / "params.yaml").exists()


def read(root: Path, folder: Path, only_arm: str, whole_sweep: bool = False) -> Iterator[Run]:
    """The reported runs of a study's arms, or of one of them where `only_arm` is not empty.

    With `whole_sweep` those of the sweeps too. Raises UserError for an arm it lacks.
    """
    study = studies.read(root / folder)
    paths = sorted((root / folder / "points").glob("*.json"))
    arms = [path.stem for path in paths]
    if only_arm and only_arm not in arms:
        raise UserError(
            f"{folder} has no results of an arm {only_arm!r}; {params.nearest(only_arm, arms)}"
        )
    # the others are compared with the reference, so it comes first
    paths.sort(key=lambda path: path.stem != study.params.reference)
    for path in paths:
        if only_arm not in ("", path.stem):
            continue
        arm = _read_arm(path)
        values = _params(root, study, path.stem, arm)
        for point in arm.points:
            is_reported = point.at == arm.best if point.reported is None else point.reported
            if whole_sweep or is_reported:
                versions = arm.made.versions if arm.made else point.environment
                yield _run(f"{folder}:{path.stem}", {**values, **point.at}, point, versions)


def _read_arm(path: Path) -> Arm:
    record = studies.read_points(path)
    if "made" not in record:
        points = [
            {OLD_NAMES.get(name, name): value for name, value in point.items()}
            for point in record["points"]
        ]
        record = {**record, "points": points}
    return Arm.model_validate(record)


def _params(root: Path, study: Study, name: str, arm: Arm) -> dict[str, Any]:
    """What an arm's points were made with, by dotted key. Old points do not say it: they are taken
    to have been made with the project's params of today.
    """
    if arm.made is not None:
        return dict(arm.made.params)
    project = params.changed(params.read(root / "params.yaml"), study.params.changes)
    return leaves(params.changed(project, study.arm(name).changes))


def _run(arm: str, values: dict[str, Any], point: Point, versions: dict[str, str]) -> Run:
    measures = dict(numbers(point.model_extra or {}))
    if "tokens" in measures:
        measures["tokens_seen"] = measures.pop("tokens")
    values = {**values, "train.seed": point.seed, "train.data_seed": point.seed}
    context = values.get("train.context")
    if context is not None:  # a study scores in windows that do not overlap
        measures |= {"window": float(context), "stride": float(context)}
    curves = {}
    if point.training:
        curves["training"] = pd.DataFrame(point.training, columns=["step", "train_nats"])
    if point.curve:
        curves["validation"] = pd.DataFrame(point.curve, columns=["step", "validation_nats"])
    return Run(
        f"{arm}, seed {point.seed}",
        values,
        measures,
        curves,
        diverged=point.diverged,
        arm=arm,
        environment=versions,
    )
