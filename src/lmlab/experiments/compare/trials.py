"""How much each variant was tuned: what was tried of its kind, and the expected best of so many
tries.

A variant that is the best of many configurations looks better than one that was tried once,
whatever it is worth. So the configurations of the same parts that were ever run stand beside a
verdict: those of every experiment in Git (by hand, queued, swept or searched), and of a study's arm
all that it swept. Another seed is no other configuration. Where one side was tried more often, the
two are also compared at equal tuning: by the expected best of the smaller number of configurations,
drawn with replacement from those there are (Dodge, Gururangan, Card, Schwartz and Smith 2019, "Show
Your Work").
"""

import math
from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from lmlab.core.params import Values
from lmlab.experiments.compare import meaning
from lmlab.experiments.compare.pairing import observe
from lmlab.experiments.compare.run import SEEDS, Run
from lmlab.experiments.compare.variants import Variant, chosen_parts, mattering
from lmlab.experiments.wording import quantity

Configuration = tuple[tuple[str, str], ...]
"""Params that mattered, without seeds, by dotted key."""


@dataclass(frozen=True)
class Tuning:
    """How much a variant and the baseline were tuned."""

    baseline: int
    """Configurations of the baseline's parts that were run."""
    variant: int
    together: bool
    """Whether the two have the same parts, so that these are the same configurations."""
    measure: str = ""
    """The measure of the expected best; empty where there is none to give."""
    best_baseline: float = math.nan
    """The expected best of as many configurations as the side has that was tried less."""
    best_variant: float = math.nan

    @property
    def sentence(self) -> str:
        """In words."""
        configurations = quantity(self.variant, "configuration")
        if self.together:
            return f"both are among {configurations} of the same parts that were run"
        counts = f"{configurations} of its parts run, {self.baseline} of the baseline's"
        if self.variant == self.baseline or not self.measure:
            return counts
        least = min(self.variant, self.baseline)
        return (
            f"{counts}; at {least} each the best is expected at {self.best_variant:.4g}, the"
            f" baseline's at {self.best_baseline:.4g} ({self.measure}; Dodge et al. 2019)"
        )


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
        """The expected best of so many configurations in a measure; nan where it cannot be given.

        A configuration counts by the mean over its runs, where what decides the measure is as in
        the run `like`. One in which a run diverged or missed a target counts as the worst that has
        a number; one that was below a target by the first validation counts as the best.
        """
        better = meaning.direction(measure, [like])
        values = [self._value(runs, measure, better, like) for runs in self.configurations.values()]
        observed = [value for value in values if not math.isnan(value)]
        numbers = [value for value in observed if math.isfinite(value)]
        if not better or not numbers:
            return math.nan
        clipped = np.clip(observed, min(numbers), max(numbers)).tolist()
        return expected_best(clipped, count, better)

    def _value(self, runs: Sequence[Run], measure: str, better: int, like: Run) -> float:
        """The mean of a configuration's runs.

        Infinite where one has no number, nan where none measured it in that way.
        """
        values = []
        for run in runs:
            if run.diverged or not meaning.unlike(measure, [run, like]):
                observation = observe(run, measure, better)
                if observation:
                    values.append(observation.value)
        worst = -better * math.inf
        if worst in values:
            return worst
        return float(np.mean(values)) if values else math.nan


def expected_best(values: Sequence[float], count: int, better: int) -> float:
    """The expected best of `count` values drawn with replacement.

    `better` is 1 where more is better, -1 where less is. The probability that the best drawn is the
    k-th of n in ascending order is (k / n)**count - ((k - 1) / n)**count.
    """
    ascending_N = np.sort(np.asarray(values, dtype=np.float64) * better)
    share_N = np.arange(1, len(values) + 1) / len(values)
    probability_N = share_N**count - (share_N - 1 / len(values)) ** count
    return float(better * (ascending_N * probability_N).sum())


def tried(runs: Iterable[Run]) -> dict[Hashable, Tried]:
    """What was run of each choice of parts; the key is that of `choice`."""
    by_choice: dict[Hashable, dict[Configuration, list[Run]]] = {}
    for run in runs:
        mattered = mattering(run)
        configurations = by_choice.setdefault(_choice(run, mattered), {})
        configurations.setdefault(_configuration(mattered), []).append(run)
    return {choice: Tried(configurations) for choice, configurations in by_choice.items()}


def tuning(
    ledger: Mapping[Hashable, Tried],
    baseline: Variant,
    variant: Variant,
    measure: str,
    comparable: bool,
) -> Tuning:
    """How much the two were tuned; `comparable` is whether they compare in the measure."""
    our_choice, their_choice = choice(baseline), choice(variant)
    ours, theirs = ledger[our_choice], ledger[their_choice]
    least = min(ours.count, theirs.count)
    our_best = ours.best_of(least, measure, baseline.runs[0])
    their_best = theirs.best_of(least, measure, variant.runs[0])
    finite = math.isfinite(our_best) and math.isfinite(their_best)
    return Tuning(
        baseline=ours.count,
        variant=theirs.count,
        together=our_choice == their_choice,
        measure=measure if finite and comparable else "",
        best_baseline=our_best,
        best_variant=their_best,
    )


def choice(variant: Variant) -> Hashable:
    """The parts that a variant is built from, by the keys that choose them; a study's arm by its
    name.
    """
    return _choice(variant.runs[0], mattering(variant.runs[0]))


def _choice(run: Run, mattered: Values) -> Hashable:
    return run.arm or tuple(sorted(chosen_parts(run, mattered).items()))


def _configuration(mattered: Mapping[str, Any]) -> Configuration:
    return tuple(sorted((key, repr(value)) for key, value in mattered.items() if key not in SEEDS))
