"""What the runs of two variants came to, seed by seed: the pairs there are, and the runs that make
none.

A run need not have a number to be an observation. One that diverged is worse than any that did not,
so is one whose number is NaN or infinite, and one that never reached a target is worse than any
that did; such runs are tied in the last place (worst-rank scores: Lachin 1999, "Worst-rank score
analysis with informatively missing observations in clinical trials"). A target that the first
validation was already below was reached before any that has a number (it is censored the other
way), and such runs are tied in the first place. Where a run has not measured a thing at all, there
is no observation. Its pair is incomplete, as it is where the other side never ran that seed, or its
run failed or has not ended. So is a pair in which one run ended short of a target that the other
reached only later than that: nobody knows which of the two was the sooner.

Incomplete pairs decide nothing by themselves. What they could have decided is bounded by filling
them in with the best and with the worst value seen (bounds on what is missing, whatever the reason:
Horowitz and Manski 2000).
"""

import math
import re
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from lmlab.experiments.compare.run import Run

Seeds = tuple[Any, ...]

AT_MOST, MORE_THAN = "_at_most", "_more_than"
"""How the block of a number's name ends where only a bound is known: `tokens_to_more_than.2.5` for
`tokens_to.2.5`.
"""


class Kind(StrEnum):
    """What an observation is."""

    NUMBER = "number"
    DIVERGED = "diverged"
    NOT_FINITE = "NaN or infinite"
    NOT_REACHED = "not reached"
    BEFORE_FIRST = "before the first validation"


@dataclass(frozen=True)
class Observation:
    """What one run came to in one measure."""

    kind: Kind
    value: float
    """The number; infinite, in the worst or the best direction, for what can only be ranked; nan
    for a run that diverged or came to NaN or infinity where it is not known which direction is
    worse.
    """
    bound: float = math.nan
    """Of a target that was not reached, or before the first validation: until when that is known;
    nan where it is not.
    """

    def ranks_with(self, other: "Observation") -> bool:
        """Whether it is known which of the two is the larger, or that they are tied."""
        return not self._may_pass(other) and not other._may_pass(self)

    def _may_pass(self, other: "Observation") -> bool:
        """Whether this is a bound, and the other's number lies where only the bound is known."""
        if other.kind != Kind.NUMBER:
            return False
        if self.kind == Kind.NOT_REACHED:
            return other.value > self.bound
        return self.kind == Kind.BEFORE_FIRST and other.value < self.bound


Sides = tuple[list[Observation], list[Observation]]
"""The observations of the baseline and of the variant."""


def observe(run: Run, measure: str, better: int) -> Observation | None:
    """What a run came to; None where it did not measure that.

    `better` is 1 where more is better, -1 where less is, 0 where neither is.
    """
    worst = -better * math.inf if better else math.nan
    value = run.measures.get(measure)
    if run.diverged and (better or value is None):
        return Observation(Kind.DIVERGED, worst)
    if value is not None:
        if math.isfinite(value):
            return Observation(Kind.NUMBER, value)
        return Observation(Kind.NOT_FINITE, worst)
    bound = run.measures.get(_bound(measure, MORE_THAN))
    if bound is not None:
        return Observation(Kind.NOT_REACHED, math.inf, bound)
    bound = run.measures.get(_bound(measure, AT_MOST))
    if bound is not None:
        return Observation(Kind.BEFORE_FIRST, -math.inf, bound)
    return _of_older_results(run, measure)


def is_observed(run: Run, measure: str) -> bool:
    """Whether a run came to anything in a measure."""
    return observe(run, measure, -1) is not None


def _bound(measure: str, ending: str) -> str:
    """The name of a bound on a measure: `a.b_at_most.2.5` for `a.b.2.5`."""
    first, _, rest = measure.partition(".")
    block, _, name = rest.partition(".")
    return f"{first}.{block}{ending}.{name}"


def _of_older_results(run: Run, measure: str) -> Observation | None:
    """A target of `learning_curve` without a number, in results that lack its bounds."""
    match = re.fullmatch(r"learning_curve\.(?:tokens|bytes|flops)_to\.(\d+\.?\d*)", measure)
    if not match or "learning_curve.tokens" not in run.measures:
        return None
    target = float(match[1])
    targets = run.params.get("measures.learning_curve.targets")
    if targets is not None and target not in (targets if isinstance(targets, list) else [targets]):
        return None
    column = "validation_bits_per_byte"
    table = run.curves.get("validation")
    if table is not None and column in table:
        losses = pd.to_numeric(table[column], errors="coerce")
        if (losses <= target).any():  # if it had crossed between two validations it had a number
            return Observation(Kind.BEFORE_FIRST, -math.inf)
    return Observation(Kind.NOT_REACHED, math.inf)


@dataclass(frozen=True)
class Pairs:
    """The observations of a baseline and a variant in one measure, by seeds."""

    ours: list[Observation]
    theirs: list[Observation]
    """Of the same seeds as `ours`, in the same order."""
    alone: list[tuple[Observation | None, Observation | None]]
    """Of the seeds that lack one or both: the baseline's and the variant's. None and None where
    neither has ended.
    """
    again: dict[int, Sides] = field(default_factory=dict)
    """Where a side came to several things with the same seeds: all of them, by the pair's place."""

    @property
    def values(self) -> NDArray[np.float64]:
        """Shape (2, N): the baseline's values and the variant's; nan where one cannot even be
        ranked.
        """
        values = [[observation.value for observation in side] for side in (self.ours, self.theirs)]
        return np.array(values, dtype=np.float64).reshape(2, len(self.ours))

    def filled(self, better: int, favours_variant: bool) -> NDArray[np.float64]:
        """Shape (2, N + alone): `values` with what is missing filled in, in favour of one side.

        In favour of the variant its own missing runs get the best value that either side has, and
        the baseline's the worst; otherwise the opposite. Where a side came to several things with
        the same seeds, the best or the worst of those counts. Where it is not known what is better,
        the least counts as the best.
        """
        more_is_better = better > 0
        observed = [observation.value for observation in self._all()]
        best, worst = min(observed), max(observed)
        if more_is_better:
            best, worst = worst, best
        for_baseline, for_variant = (worst, best) if favours_variant else (best, worst)

        whole_2N = self.values
        for place, sides in self.again.items():
            for row, (side, take_best) in enumerate(
                zip(sides, (not favours_variant, favours_variant))
            ):
                values = [observation.value for observation in side]
                whole_2N[row, place] = max(values) if take_best == more_is_better else min(values)
        rest = [
            [ours.value if ours else for_baseline, theirs.value if theirs else for_variant]
            for ours, theirs in self.alone
        ]
        rest_2M = np.array(rest, dtype=np.float64).reshape(-1, 2).T
        return np.concatenate([whole_2N, rest_2M], axis=1)

    @property
    def ranked(self) -> bool:
        """Whether all that was observed can be ranked, in the pairs and besides."""
        return not any(math.isnan(observation.value) for observation in self._all())

    def _all(self) -> Iterable[Observation]:
        yield from self.ours
        yield from self.theirs
        for pair_of_two in self.alone:
            yield from (observation for observation in pair_of_two if observation)
        for sides in self.again.values():
            for side in sides:
                yield from side

    def count(self, kind: Kind) -> tuple[int, int]:
        """How many of the pairs' runs are of a kind: of the baseline, of the variant."""
        of_baseline = sum(observation.kind == kind for observation in self.ours)
        of_variant = sum(observation.kind == kind for observation in self.theirs)
        return of_baseline, of_variant


def pair(
    baseline: Sequence[Run],
    variant: Sequence[Run],
    measure: str,
    better: int,
    unfinished: tuple[Collection[Seeds], Collection[Seeds]] = ((), ()),
) -> Pairs:
    """Pair the runs of two variants by their seeds.

    `unfinished` are the seeds of either whose run began and has no results. Of several runs of one
    side with the same seeds the first counts; what the others came to is kept in `again`.
    """
    ours = _by_seeds(baseline, measure, better, unfinished[0])
    theirs = _by_seeds(variant, measure, better, unfinished[1])
    pairs = Pairs([], [], [])
    for seeds in dict.fromkeys([*theirs, *ours]):
        sides = ours.get(seeds, []), theirs.get(seeds, [])
        our_first, their_first = (side[0] if side else None for side in sides)
        if not our_first or not their_first:
            pairs.alone.append((our_first, their_first))
        elif not our_first.ranks_with(their_first):
            # only the number is known: the other is a bound below it or above it
            is_number = our_first.kind == Kind.NUMBER
            pairs.alone.append((our_first, None) if is_number else (None, their_first))
        else:
            if max(map(len, sides)) > 1:
                pairs.again[len(pairs.ours)] = sides
            pairs.ours.append(our_first)
            pairs.theirs.append(their_first)
    return pairs


def _by_seeds(
    runs: Sequence[Run], measure: str, better: int, unfinished: Collection[Seeds]
) -> dict[Seeds, list[Observation]]:
    """The different things that runs came to, in their order, by their seeds.

    The list is empty for runs that did not end or did not measure it.
    """
    observations: dict[Seeds, list[Observation]] = {}
    for run in runs:
        of_seeds = observations.setdefault(run.seeds, [])
        observation = observe(run, measure, better)
        if observation and observation not in of_seeds:
            of_seeds.append(observation)
    for seeds in unfinished:
        observations.setdefault(seeds, [])
    return observations
