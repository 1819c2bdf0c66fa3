"""The points of a study as runs: what `lmlab study` writes into points/<arm>.json."""

from collections.abc import Iterator
from pathlib import Path

import pandas as pd

from lmlab.core import params
from lmlab.core.errors import UserError
from lmlab.core.params import Values
from lmlab.experiments.commands import leaves
from lmlab.experiments.compare.run import Run, numbers
from lmlab.experiments.studies import records
from lmlab.experiments.studies import study as studies
from lmlab.experiments.studies.records import ArmRecord, Point
from lmlab.experiments.studies.study import Study


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
        arm = records.read(path)
        values = _params(root, study, path.stem, arm)
        for point in arm.points:
            is_reported = point.at == arm.best if point.reported is None else point.reported
            if whole_sweep or is_reported:
                versions = arm.made.versions if arm.made else point.result.environment
                yield _run(f"{folder}:{path.stem}", {**values, **point.at}, point, versions)


def _params(root: Path, study: Study, name: str, arm: ArmRecord) -> Values:
    """What an arm's points were made with, by dotted key. Old points do not say it: they are taken
    to have been made with the project's params of today.
    """
    if arm.made is not None:
        return dict(arm.made.params)
    project = params.changed(params.read(root / "params.yaml"), study.params.changes)
    return leaves(params.changed(project, study.arm(name).changes))


def _run(arm: str, values: Values, point: Point, versions: dict[str, str]) -> Run:
    result = point.result
    measures = dict(numbers(result.values()))
    if "tokens" in measures:
        measures["tokens_seen"] = measures.pop("tokens")
    values = {**values, "train.seed": point.seed, "train.data_seed": point.seed}
    context = values.get("train.context")
    if context is not None:  # a study scores in windows that do not overlap
        measures |= {"window": float(context), "stride": float(context)}
    curves = {}
    if result.training:
        curves["training"] = pd.DataFrame(result.training, columns=["step", "train_nats"])
    if result.curve:
        curves["validation"] = pd.DataFrame(result.curve, columns=["step", "validation_nats"])
    return Run(
        f"{arm}, seed {point.seed}",
        values,
        measures,
        curves,
        diverged=result.diverged,
        arm=arm,
        environment=versions,
    )
