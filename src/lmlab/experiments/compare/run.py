"""A finished run: its params, its measures, and any of its files. Everything that compares runs
works on these.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from io import BytesIO
from pathlib import Path
from typing import Any

import pandas as pd
from pydantic import BaseModel, ConfigDict

from lmlab.core import params
from lmlab.core.errors import UserError
from lmlab.core.files import read_json, vouched
from lmlab.core.params import Values
from lmlab.evaluation.about import About
from lmlab.experiments.commands import leaves
from lmlab.training.status import how_it_diverged

SEEDS = ("train.seed", "train.data_seed")
"""What may differ between runs of one variant, and what runs of two variants are paired by."""
CURVES = ("training", "validation", "loss_by_position", "calibration", "character_classes")
BLOCKS = "validation_blocks"
"""The table of results/ with the validation loss of each block of text."""
MEASURES = "results/measures.json"
METRICS = "results/metrics.json"
"""The few measures that people compare; all of them in a run made before there was MEASURES."""
WORKSPACE = "workspace"

Reader = Callable[[str], bytes | None]


@dataclass(frozen=True)
class Run:
    """One finished run, as its results describe it."""

    name: str
    """What a person calls it: the name of the experiment, branch or commit, or a study's arm and
    seed.
    """
    params: Values
    """The whole params.yaml of the run, by dotted key; lists stay lists."""
    measures: dict[str, float]
    """The numbers of results/measures.json (or of a study's point) by dotted key, such as
    validation.bits_per_byte.
    """
    curves: dict[str, pd.DataFrame] = field(default_factory=dict)
    """The tables of results/ by name without .csv: CURVES, and BLOCKS where the run has it."""
    open: Reader = lambda path: None
    """Any file of the run by its path in the repository, from Git or DVC's cache; None where it
    cannot be had.
    """
    made_with: dict[str, str] = field(default_factory=dict)
    """MD5 of the code and data that training and evaluation used, by path; empty where unknown."""
    diverged: str = ""
    """At which step the run diverged and why; empty if it did not. A run that diverged counts as
    the worst there can be.
    """
    arm: str = ""
    """The study and arm it belongs to, if any."""
    about: Mapping[str, About] = field(default_factory=dict)
    """What results/measures.json says about each measure, by its name; empty for older results."""
    environment: Mapping[str, str] = field(default_factory=dict)
    """Versions of what it ran with, such as torch's; empty where they were not recorded."""
    text: str = ""
    """SHA-256 of the text it was scored on; empty for older results."""
    start: str = ""
    """The recipe of the run that it went on from; empty for one from scratch."""
    began_from: str = ""
    """The commit that an experiment began from, or the run's own commit; empty for a study's."""

    @property
    def seeds(self) -> tuple[Any, ...]:
        """What it is paired by. A data_seed of -1 means the same as the seed."""
        seed, data_seed = (_hashable(self.params.get(key)) for key in SEEDS)
        return seed, seed if data_seed == -1 else data_seed

    @property
    def status(self) -> str:
        """How it ended: finished or diverged."""
        return "diverged" if self.diverged else "finished"


def _hashable(value: Any) -> Any:
    """A seed as it is; a list or a block, which a failed run may have for one, as its repr."""
    return value if isinstance(value, int | float | str) or value is None else repr(value)


class ScoredText(BaseModel):
    """Which text a run was scored on."""

    sha256: str | None = None


class ResultsOfStart(BaseModel):
    """What results/measures.json says of the run that this one went on from."""

    model_config = ConfigDict(frozen=True, extra="allow")

    recipe: str = ""


class Results(BaseModel):
    """results/measures.json, or results/metrics.json of older code."""

    model_config = ConfigDict(frozen=True, extra="allow")

    about: dict[str, About] = {}
    diverged: dict[str, Any] = {}
    environment: dict[str, str] = {}
    text: ScoredText = ScoredText()
    start: ResultsOfStart = ResultsOfStart()

    @property
    def measures(self) -> dict[str, float]:
        """The numbers of the start and of all other blocks, by dotted key."""
        of_start = numbers(self.start.model_extra or {}, "start.")
        return {**dict(numbers(self.model_extra or {})), **dict(of_start)}


def with_results(run: Run, record: Any) -> Run:
    """The same run with what results/measures.json (or metrics.json of older code) holds.

    Raises ValueError or LookupError where `record` is not such a file's content.
    """
    results = Results.model_validate(record)
    return replace(
        run,
        measures=results.measures,
        diverged=how_it_diverged(record),
        about=results.about,
        environment=results.environment,
        text=results.text.sha256 or "",
        start=results.start.recipe,
    )


def numbers(tree: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, float]]:
    """The numbers of nested blocks, by dotted key."""
    for key, value in tree.items():
        if isinstance(value, dict):
            yield from numbers(value, f"{prefix}{key}.")
        elif isinstance(value, int | float) and not isinstance(value, bool):
            yield f"{prefix}{key}", float(value)


def workspace_run(root: Path = Path()) -> Run:
    """The run whose files are in the workspace, unchecked.

    For a stage that DVC runs, which sees to it that the files belong together. Times are left out:
    what a stage writes does not depend on those.
    """

    def read(path: str) -> bytes | None:
        if path.startswith("data/timing/") or not (root / path).is_file():
            return None
        return vouched(root / path, _stage_that_makes(path)).read_bytes()

    curves = {}
    for name in (*CURVES, BLOCKS):
        table = read(f"results/{name}.csv")
        if table and table.strip():
            curves[name] = pd.read_csv(BytesIO(table))
    results = MEASURES if read(MEASURES) else METRICS
    run = Run(WORKSPACE, leaves(params.read(root / "params.yaml")), {}, curves, read)
    try:
        return with_results(run, read_json(root / results, made_by="evaluate"))
    except (ValueError, AttributeError, LookupError, OverflowError):
        raise UserError(
            f"{results} is damaged; run `dvc repro --force evaluate` to make it again"
        ) from None


def _stage_that_makes(path: str) -> str:
    stages = {
        "results": "evaluate",
        "corpus": "download",
        "probes": "probe",
        "tokenizer": "tokenizer",
    }
    return stages.get(Path(path).parent.name, "train")
