"""How much each variant was tuned: what was tried of its kind, and what the best of so many tries
may be expected to be.

A variant that is the best of many configurations looks better than one that was tried once,
whatever it is worth. So the configurations of the same parts that were ever run stand beside a
verdict: those of every experiment in Git, by hand, queued, swept or searched, and of a study's arm
all that it swept. Seeds make no configuration. Where one side was tried more often, the two are
also told at equal tuning: the expected best of the smaller number of configurations, drawn with
replacement from those there are (Dodge, Gururangan, Card, Schwartz and Smith 2019, "Show Your
Work").
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from lmlab.experiments.compare import meaning
from lmlab.experiments.compare.pairing import observe
from lmlab.experiments.compare.run import SEEDS, Run
from lmlab.experiments.compare.variants import Variant, chosen_parts, mattering

Configuration = tuple[tuple[str, str], ...]
"""Params that mattered, without seeds, by dotted key."""


@dataclass(frozen=True)
class Tried:
    """What was run with one choice of parts."""

    configurations: Mapping[Configuration, Sequence[Run]]
    """Each with its runs."""

    @property
    def count(self) -> int:
        """How many configurations."""
        return len(self.configurations)

    def best_of(self, count: int, measure: str, like: Run) -> float:
        """The expected best of so many configurations in a measure; nan where that cannot be told.

        Of each configuration the mean over its runs counts, where what decides the measure is as in
        the run `like`. One in which a run diverged counts as the worst that has a number, as does
        one that missed a target; one that was there before it was looked counts as the best.
        """
        better = meaning.direction(measure, [like])
        of_each = [
            self._value(runs, measure, better, like) for runs in self.configurations.values()
        ]
        observed = [value for value in of_each if not math.isnan(value)]
        numbers = [value for value in observed if math.isfinite(value)]
        if not better or not numbers:
            return math.nan
        return expected_best(np.clip(observed, min(numbers), max(numbers)).tolist(), count, better)

    def _value(self, runs: Sequence[Run], measure: str, better: int, like: Run) -> float:
        """The mean of a configuration's runs; infinite where one has no number, nan where none
        measured it in that way.
        """
        alike = [run for run in runs if run.broke or not meaning.unlike(measure, [run, like])]
        values = [one.value for run in alike if (one := observe(run, measure, better))]
        worst = -better * math.inf
        return worst if worst in values else float(np.mean(values)) if values else math.nan


def expected_best(values: Sequence[float], count: int, better: int) -> float:
    """The expected best of `count` values drawn with replacement; `better` is 1 where more is, -1
    where less is.
    """
    ascending_N = np.sort(np.asarray(values, dtype=np.float64) * better)
    share_N = np.arange(1, len(values) + 1) / len(values)
    chance_N = (
        share_N**count - (share_N - 1 / len(values)) ** count
    )  # that the best of them is this one
    return float(better * (ascending_N * chance_N).sum())


def tried(runs: Iterable[Run]) -> dict[Any, Tried]:
    """What was run of each choice of parts; the key is that of `choice`."""
    found: dict[Any, dict[Configuration, list[Run]]] = {}
    for run in runs:
        mattered = mattering(run)
        of_choice = found.setdefault(_choice(run, mattered), {})
        of_choice.setdefault(_configuration(mattered), []).append(run)
    return {key: Tried(configurations) for key, configurations in found.items()}


def choice(variant: Variant) -> Any:
    """The parts that a variant is built from, by the keys that choose them; of a study's arm, the
    arm.
    """
    return _choice(variant.runs[0], mattering(variant.runs[0]))


def _choice(run: Run, mattered: dict[str, Any]) -> Any:
    return run.arm or tuple(sorted(chosen_parts(run, mattered).items()))


def _configuration(mattered: Mapping[str, Any]) -> Configuration:
    return tuple(sorted((key, repr(value)) for key, value in mattered.items() if key not in SEEDS))
