"""What the runs of two variants came to, seed by seed: the pairs there are, and the runs that make
none.

A run need not have a number to be an observation. One that diverged is worse than any that did not,
so is one whose number is not finite, and one that never reached a target is worse than any that
did; such runs are tied in the last place (worst-rank scores: Lachin 1999, "Worst-rank score
analysis with informatively missing observations in clinical trials"). A target that the first
validation was below already was reached before any that has a number (it is censored the other
way), and such runs are tied in the first place. Where a run has not measured a thing at all, there
is no observation, and its pair is incomplete as it is where the other side never ran that seed, or
where its run failed, or has not ended; so it is where one run ended short of a target that the
other reached only later than that, since nobody knows which of the two was the sooner.

Pairs that are incomplete decide nothing by themselves; what they could have decided is bounded by
filling them in with the best and with the worst value seen (bounds on what is missing, whatever the
reason: Horowitz and Manski 2000).
"""

import math
import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from lmlab.experiments.compare.run import Run

Seeds = tuple[Any, ...]

AT_MOST, MORE_THAN = "_at_most", "_more_than"
"""What the block of a number's name ends in where only a bound is known: `tokens_to_more_than.2.5`
for `tokens_to.2.5`.
"""


class Kind(StrEnum):
    """What an observation is."""

    NUMBER = "number"
    DIVERGED = "diverged"
    NO_NUMBER = "no finite number"
    NOT_REACHED = "not reached"
    BEFORE_FIRST = "before the first validation"


@dataclass(frozen=True)
class Observation:
    """What one run came to in one measure."""

    kind: Kind
    value: float
    """The number; infinite, in the direction that is worst or best, for what can only be ranked;
    nan for a run that diverged, or has no finite number, where it is not known which direction is
    worse.
    """
    bound: float = math.nan
    """Of a target that was not reached, or before the first validation: until when that is known;
    nan where it is not.
    """

    def ranks_with(self, other: "Observation") -> bool:
        """Whether it is known which of the two is the larger, or that they are tied."""
        if other.kind == Kind.NUMBER and self.kind == Kind.NOT_REACHED:
            return not other.value > self.bound
        if other.kind == Kind.NUMBER and self.kind == Kind.BEFORE_FIRST:
            return not other.value < self.bound
        return True


def observe(run: Run, measure: str, better: int) -> Observation | None:
    """What a run came to; None where it did not measure that. `better` is 1 where more is, -1 where
    less is, else 0.
    """
    worst = -better * math.inf if better else math.nan
    value = run.measures.get(measure)
    if run.broke and (better or value is None):
        return Observation(Kind.DIVERGED, worst)
    if value is not None:
        return (
            Observation(Kind.NUMBER, value)
            if math.isfinite(value)
            else Observation(Kind.NO_NUMBER, worst)
        )
    if (bound := run.measures.get(_bound(measure, MORE_THAN))) is not None:
        return Observation(Kind.NOT_REACHED, math.inf, bound)
    if (bound := run.measures.get(_bound(measure, AT_MOST))) is not None:
        return Observation(Kind.BEFORE_FIRST, -math.inf, bound)
    return _of_older_results(run, measure)


def _bound(measure: str, ending: str) -> str:
    """The name of a bound on a measure: `a.b_at_most.2.5` for `a.b.2.5`."""
    first, _, rest = measure.partition(".")
    block, _, name = rest.partition(".")
    return f"{first}.{block}{ending}.{name}"


def _of_older_results(run: Run, measure: str) -> Observation | None:
    """A target of `learning_curve` without a number, in results that do not have its bounds yet."""
    found = re.fullmatch(r"learning_curve\.(?:tokens|flops)_to\.(\d+\.?\d*)", measure)
    if not found or "learning_curve.tokens" not in run.measures:
        return None
    target = float(found[1])
    targets = run.params.get("measures.learning_curve.targets")
    if targets is not None and target not in (targets if isinstance(targets, list) else [targets]):
        return None
    column = "validation_bits_per_byte"
    table = run.curves.get("validation")
    if (
        table is not None
        and column in table
        and (pd.to_numeric(table[column], errors="coerce") <= target).any()
    ):
        return Observation(
            Kind.BEFORE_FIRST, -math.inf
        )  # a crossing between two validations would have its number
    return Observation(Kind.NOT_REACHED, math.inf)


@dataclass(frozen=True)
class Pairs:
    """The observations of a baseline and a variant in one measure, by seeds."""

    ours: list[Observation]
    theirs: list[Observation]
    """Of the same seeds as `ours`, in the same order."""
    alone: list[tuple[Observation | None, Observation | None]]
    """Of the seeds that do not have both: the baseline's and the variant's. None and None where
    neither has ended.
    """
    again: dict[int, tuple[list[Observation], list[Observation]]] = field(default_factory=dict)
    """By their places among the pairs those of which a side came to several things with the same
    seeds: all of them.
    """

    @property
    def values(self) -> NDArray[np.float64]:
        """Shape (2, N): the baseline's values and the variant's; nan where one cannot even be
        ranked.
        """
        values = [[one.value for one in side] for side in (self.ours, self.theirs)]
        return np.array(values, dtype=np.float64).reshape(2, len(self.ours))

    def filled(self, better: int, favour: bool) -> NDArray[np.float64]:
        """Shape (2, N + alone): the same and, for what is missing, the best or the worst value that
        either side has.

        In favour of the variant its own missing runs get the best and the baseline's the worst;
        otherwise the opposite. Where a side came to several things with the same seeds, the best or
        the worst of those. Where it is not known what is better, the least counts as the best.
        """
        observed = [one.value for one in self._observed]
        best, worst = (
            (max(observed), min(observed)) if better > 0 else (min(observed), max(observed))
        )
        ours, theirs = (worst, best) if favour else (best, worst)
        whole_2N = self.values
        for place, sides in self.again.items():
            for row, (side, at_best) in enumerate(zip(sides, (not favour, favour))):
                values = [one.value for one in side]
                whole_2N[row, place] = max(values) if at_best == (better > 0) else min(values)
        rest = [
            [one.value if one else ours, other.value if other else theirs]
            for one, other in self.alone
        ]
        return np.concatenate([whole_2N, np.array(rest, dtype=np.float64).reshape(-1, 2).T], axis=1)

    @property
    def ranked(self) -> bool:
        """Whether all that was observed can be ranked, in the pairs and besides."""
        return not any(math.isnan(one.value) for one in self._observed)

    @property
    def _observed(self) -> list[Observation]:
        besides = [*self.alone, *(side for sides in self.again.values() for side in sides)]
        return [*self.ours, *self.theirs, *(one for some in besides for one in some if one)]

    def count(self, kind: Kind) -> tuple[int, int]:
        """How many of the pairs' runs are of a kind: of the baseline, of the variant."""
        return sum(one.kind == kind for one in self.ours), sum(
            one.kind == kind for one in self.theirs
        )


def pair(
    baseline: Sequence[Run],
    variant: Sequence[Run],
    measure: str,
    better: int,
    unfinished: tuple[Collection[Seeds], Collection[Seeds]] = ((), ()),
) -> Pairs:
    """Pair the runs of two variants by their seeds; `unfinished` are seeds of either whose run was
    begun and has no results.

    Of several runs of one side with the same seeds the first counts; what the others came to is
    kept beside it (`again`).
    """
    ours, theirs = (
        _by_seeds(runs, measure, better, begun)
        for runs, begun in zip((baseline, variant), unfinished)
    )
    whole: list[tuple[Observation, Observation]] = []
    rest: list[tuple[Observation | None, Observation | None]] = []
    again: dict[int, tuple[list[Observation], list[Observation]]] = {}
    for seeds in dict.fromkeys([*theirs, *ours]):
        sides = ours.get(seeds, []), theirs.get(seeds, [])
        one, other = (side[0] if side else None for side in sides)
        if not (one and other and _ranked(one, other)):
            rest.append(_known(one, other))
            continue
        if max(map(len, sides)) > 1:
            again[len(whole)] = sides
        whole.append((one, other))
    return Pairs([one for one, _ in whole], [other for _, other in whole], rest, again)


def _by_seeds(
    runs: Sequence[Run], measure: str, better: int, begun: Collection[Seeds]
) -> dict[Seeds, list[Observation]]:
    """The different things that runs came to, in their order, by their seeds; nothing for those
    that were only begun.
    """
    found: dict[Seeds, list[Observation]] = {}
    for run in runs:
        of_seeds = found.setdefault(run.seeds, [])
        seen = observe(run, measure, better)
        if seen and seen not in of_seeds:
            of_seeds.append(seen)
    return found | {seeds: [] for seeds in begun if seeds not in found}


def _ranked(one: Observation, other: Observation) -> bool:
    return one.ranks_with(other) and other.ranks_with(one)


def _known(
    one: Observation | None, other: Observation | None
) -> tuple[Observation | None, Observation | None]:
    """What is known of a pair that is none: of two that do not rank with each other only the
    number.
    """
    if not (one and other):
        return one, other
    return (one, None) if one.kind == Kind.NUMBER else (None, other)
