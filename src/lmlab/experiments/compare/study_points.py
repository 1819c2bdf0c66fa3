"""The points of a study as runs: studies/<name>/points/<arm>.json, which the stage `arm` writes."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pandas as pd
from pydantic import BaseModel, ConfigDict, Field

from lmlab.core import params
from lmlab.core.errors import UserError
from lmlab.core.files import read_json
from lmlab.experiments.commands import leaves
from lmlab.experiments.compare.run import Run, numbers


class Point(BaseModel):
    """One run of an arm. Its other keys are measures, in nested blocks."""

    model_config = ConfigDict(frozen=True, extra="allow")

    at: dict[str, Any]
    """The swept values, by dotted key."""
    seed: int
    diverged: str = Field("", alias="broke")
    """At which step it diverged and why; empty if it did not."""
    environment: dict[str, str] = {}
    training: list[Any] = []
    """Rows of step and nats."""
    curve: list[Any] = []
    """Rows of step and nats, of the validation split."""


class Arm(BaseModel):
    """A file of points."""

    best: dict[str, Any]
    """The swept values that did best."""
    points: list[Point]


def is_study(folder: Path) -> bool:
    """Whether a folder is that of a study with results."""
    return (folder / "points").is_dir() and (folder / "params.yaml").exists()


def read(root: Path, folder: Path, only_arm: str, whole_sweep: bool = False) -> Iterator[Run]:
    """The runs of a study's arms, or of one of them where `only_arm` is not empty.

    Of each arm's sweep those at its best values, or all. Raises UserError for an arm it lacks.
    """
    from lmlab.experiments.studies import studies  # it loads torch, which nothing else here needs

    study = studies.read(root / folder)
    paths = sorted((root / folder / "points").glob("*.json"))
    arms = [path.stem for path in paths]
    if only_arm and only_arm not in arms:
        raise UserError(
            f"{folder} has no results of an arm {only_arm!r}; {params.nearest(only_arm, arms)}"
        )
    if study.params.reference in arms:  # the others are compared with it, so it comes first
        paths.sort(key=lambda path: path.stem != study.params.reference)
    project = params.changed(params.read(root / "params.yaml"), study.params.changes)
    for path in paths:
        if only_arm not in ("", path.stem):
            continue
        arm = Arm.model_validate(read_json(path, made_by="arm"))
        tree = params.changed(project, study.arm(path.stem)[0])
        for point in arm.points:
            if whole_sweep or point.at == arm.best:
                yield _run(f"{folder}:{path.stem}", params.changed(tree, point.at), point)


def _run(arm: str, tree: params.Tree, point: Point) -> Run:
    measures = dict(numbers(point.model_extra or {}))
    if "tokens" in measures:
        measures["tokens_seen"] = measures.pop("tokens")
    values = {**leaves(tree), "train.seed": point.seed, "train.data_seed": point.seed}
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
        environment=point.environment,
    )
