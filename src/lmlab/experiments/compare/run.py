"""A finished run: its params, what was measured, and any of its files. All that compares runs works
on these.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from io import BytesIO
from pathlib import Path
from typing import Any

import pandas as pd

from lmlab.core import params
from lmlab.core.errors import UserError
from lmlab.core.files import read_json, vouched
from lmlab.evaluation.about import About
from lmlab.experiments.commands import leaves
from lmlab.training.status import how_it_diverged

SEEDS = ("train.seed", "train.data_seed")
"""What may differ between runs of one variant, and what runs of two variants are paired by."""
CURVES = ("training", "validation", "loss_by_position", "calibration", "character_classes")
BLOCKS = "validation_blocks"
"""The table of results/ that tells how much the validation loss owes to its text."""
MEASURES = "results/measures.json"
METRICS = "results/metrics.json"
"""The few of them that people compare; in a run made before there was MEASURES, all of them."""
NO_MEASURES = ("about", "diverged", "environment", "text")
"""Blocks of MEASURES that hold no measures: what decides those, where a run diverged, what it ran
with, on which text.
"""
WORKSPACE = "workspace"

Reader = Callable[[str], bytes | None]


@dataclass(frozen=True)
class Run:
    """One finished run, as its results say."""

    name: str
    """What a person calls it: the experiment's, the branch's or the commit's name, or the study's
    arm and seed.
    """
    params: dict[str, Any]
    """All of params.yaml as that run had it, by dotted keys; lists stay lists."""
    measures: dict[str, float]
    """results/measures.json (or a study's point) by dotted keys, such as validation.bits_per_byte;
    numbers only.
    """
    curves: dict[str, pd.DataFrame] = field(default_factory=dict)
    """The tables of results/ by their names without .csv: CURVES, and BLOCKS where the run has
    it.
    """
    open: Reader = lambda path: None
    """Any file of that run by its path in the repository, from Git or DVC's cache; None where it is
    not to be had.
    """
    made_with: dict[str, str] = field(default_factory=dict)
    """MD5 of the code and data that training and evaluation used, by path; empty where that is not
    known.
    """
    broke: str = ""
    """Where the run diverged and why, if it did; then it counts as the worst there can be."""
    arm: str = ""
    """The study and arm it belongs to, if it does."""
    about: Mapping[str, About] = field(default_factory=dict)
    """What results/measures.json says of each measure, by its name; empty where older code did not
    write that.
    """
    environment: Mapping[str, str] = field(default_factory=dict)
    """Versions of what it ran with, such as torch's; empty where they were not recorded."""
    text: str = ""
    """SHA-256 of the text that it was scored on; empty where older code did not write that."""
    began_from: str = ""
    """The commit that an experiment began from, or the run's own; empty for a study's."""

    @property
    def seeds(self) -> tuple[Any, ...]:
        """What it is paired by. A data_seed of -1 is the same as the seed."""
        seed, order = (_hashable(self.params.get(key)) for key in SEEDS)
        return seed, seed if order == -1 else order

    @property
    def status(self) -> str:
        """How it ended: finished or diverged."""
        return "diverged" if self.broke else "finished"


def as_it_lies(root: Path = Path()) -> Run:
    """The workspace's files as they are, for a stage that DVC runs: then what it reads belongs
    together.

    Times are not among them: what a stage writes does not depend on those.
    """

    def file(path: str) -> bytes | None:
        there = (root / path).is_file() and not path.startswith("data/timing/")
        return vouched(root / path, _maker(path)).read_bytes() if there else None

    tables = {name: file(f"results/{name}.csv") for name in (*CURVES, BLOCKS)}
    curves = {
        name: pd.read_csv(BytesIO(table))
        for name, table in tables.items()
        if table and table.strip()
    }
    results = MEASURES if file(MEASURES) else METRICS
    run = Run(WORKSPACE, leaves(params.read(root / "params.yaml")), {}, curves, file)
    try:
        return measured(run, read_json(root / results, made_by="evaluate"))
    except (ValueError, AttributeError, LookupError, OverflowError):
        raise UserError(
            f"{results} is damaged; run `dvc repro --force evaluate` to make it again"
        ) from None


def measured(run: Run, results: Mapping[str, Any]) -> Run:
    """The same run with what results/measures.json, or metrics.json of older code, says of it.

    Raises ValueError where `results` is no block, or its blocks are none.
    """
    for name in NO_MEASURES:
        if not isinstance(results.get(name, {}), dict):
            raise ValueError(f"{name} should be a block")
    values = {key: value for key, value in results.items() if key not in NO_MEASURES}
    return replace(
        run,
        measures=dict(numbers(values)),
        broke=how_it_diverged(results),
        about={
            name: About.model_validate(block) for name, block in results.get("about", {}).items()
        },
        environment=results.get("environment", {}),
        text=str(results.get("text", {}).get("sha256") or ""),
    )


def _hashable(value: Any) -> Any:
    """A seed as it is; a list or block, which a run that failed may have for one, as it is
    written.
    """
    return value if isinstance(value, int | float | str) or value is None else repr(value)


def _maker(path: str) -> str:
    """The stage that writes a file."""
    folder = Path(path).parent.name
    return {
        "results": "evaluate",
        "corpus": "download",
        "probes": "probe",
        "tokenizer": "tokenizer",
    }.get(folder, "train")


def numbers(tree: Any, at: str = "") -> Iterator[tuple[str, float]]:
    """The numbers of nested blocks, by dotted keys."""
    for key, value in tree.items():
        if isinstance(value, dict):
            yield from numbers(value, f"{at}{key}.")
        elif isinstance(value, int | float) and not isinstance(value, bool):
            yield f"{at}{key}", float(value)
