"""Runs that were made before, read from wherever they are kept: the workspace, DVC's experiments, commits, branches, studies."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pandas as pd


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
    open: Callable[[str], bytes | None] = lambda path: None
    """Any file of that run by its path in the repository, from Git or DVC's cache; None where it is not to be had."""
