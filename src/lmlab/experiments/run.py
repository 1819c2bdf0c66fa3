"""A finished run: its params, what was measured, and any of its files. All that compares runs works on these."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from io import BytesIO
from pathlib import Path
from typing import Any

import pandas as pd

from lmlab import params
from lmlab.experiments.commands import leaves
from lmlab.files import read_json, vouched

SEEDS = ("train.seed", "train.data_seed")
"""What may differ between runs of one variant, and what runs of two variants are paired by."""
CURVES = ("training", "validation", "loss_by_position", "calibration", "character_classes")
METRICS = "results/metrics.json"
WORKSPACE = "workspace"

Reader = Callable[[str], bytes | None]


@dataclass(frozen=True)
class Run:
    """One finished run, as its results say."""

    name: str
    """What a person calls it: the experiment's, the branch's or the commit's name, or the study's arm and seed."""
    params: dict[str, Any]
    """All of params.yaml as that run had it, by dotted keys; lists stay lists."""
    measures: dict[str, float]
    """results/metrics.json (or a study's point) by dotted keys, such as validation.bits_per_byte; numbers only."""
    curves: dict[str, pd.DataFrame] = field(default_factory=dict)
    """The tables of results/ by their names without .csv, such as training."""
    open: Reader = lambda path: None
    """Any file of that run by its path in the repository, from Git or DVC's cache; None where it is not to be had."""
    made_with: dict[str, str] = field(default_factory=dict)
    """MD5 of the code and data that training and evaluation used, by path; empty where that is not known."""
    broke: str = ""
    """How training broke down, if it did; then there are no measures, and the run counts as the worst there can be."""
    arm: str = ""
    """The study and arm it belongs to, if it does."""

    @property
    def seeds(self) -> tuple[Any, ...]:
        """What it is paired by. A data_seed of -1 is the same as the seed."""
        seed, order = (self.params.get(key) for key in SEEDS)
        return seed, seed if order == -1 else order


def as_it_lies(root: Path = Path()) -> Run:
    """The workspace's files as they are, for a stage that DVC runs: then what it reads belongs together.

    Times are not among them: what a stage writes does not depend on those.
    """

    def file(path: str) -> bytes | None:
        there = (root / path).is_file() and not path.startswith("data/timing/")
        return vouched(root / path, _maker(path)).read_bytes() if there else None

    tables = {name: file(f"results/{name}.csv") for name in CURVES}
    curves = {name: pd.read_csv(BytesIO(table)) for name, table in tables.items() if table and table.strip()}
    measures = dict(numbers(read_json(root / METRICS, made_by="evaluate")))
    return Run(WORKSPACE, leaves(params.read(root / "params.yaml")), measures, curves, file)


def _maker(path: str) -> str:
    """The stage that writes a file."""
    folder = Path(path).parent.name
    return {"results": "evaluate", "corpus": "download", "probes": "probe", "tokenizer": "tokenizer"}.get(folder, "train")


def numbers(tree: Any, at: str = "") -> Iterator[tuple[str, float]]:
    """The numbers of nested blocks, by dotted keys."""
    for key, value in tree.items():
        if isinstance(value, dict):
            yield from numbers(value, f"{at}{key}.")
        elif isinstance(value, int | float) and not isinstance(value, bool):
            yield f"{at}{key}", float(value)
