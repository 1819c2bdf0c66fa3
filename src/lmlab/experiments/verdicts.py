"""Whether one way of learning is better than another: paired by seed, with intervals, corrected for how many were compared.

One procedure gives both p and interval, so that they cannot contradict each other: the paired permutation test. Where two
variants are equal, each paired difference is as likely to be plus as minus; p is the share of all ways to flip the signs of
the differences that leave their mean at least as far from 0 as it is. The interval holds every shift that the same test does
not reject. This is the wild bootstrap with signs for weights and the null hypothesis imposed (Davidson and Flachaire 2008),
and its ends are means of subsets of the differences (Hartigan 1969). It is exact at any number of pairs where differences
are symmetric, as those of two equal variants always are. The usual bootstrap of the mean, which draws differences with
replacement, holds too rarely with few pairs (LOG.md has the figures), and Student's interval needs normal differences.

With n pairs p cannot be below 2 / 2**n: five seeds can never show a difference at 0.05. That is then what is said, and never
"no difference shown". Corrected is after Holm (1979) over all measures of all variants that are judged at once and that have
enough pairs to show anything; an interval has the level that Holm's procedure left to its comparison.

A run that broke down (its loss is no finite number) is the worst there can be. A pair in which only one broke down counts
as a difference as large as the largest that is seen, against the one that did.
"""

import math
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from lmlab.experiments.run import Run

ALPHA = 0.05
POWER = 0.8
"""How likely a difference should be found, where it is said how many more seeds that takes, or how small it may be."""
EXACT = 14
"""Up to so many pairs every way to flip the signs is counted; above, DRAWN of them at random."""
DRAWN = 9999
MOST_NEEDED = 10_000
"""Pairs beyond which nobody would go on counting."""

HIGHER = r"""accuracy(\..+)?|minimal_pairs(\.mean)?|blimp(\.mean)?|induction(\.score)?|gain(\.nats)?|novelty|basin_width
|tokens_per_second"""
"""Last words of measures of which more is better, as a regular expression; what stands in LOWER as well is one of these."""
LOWER = r"""bits_per_byte|nats_per_token|nats|bits|perplexity|loss|error|gap|entropy_gap\.\w+|code_length|surprise|overlap
|generated\.longest_copy|generated\.copied\..+|character_classes\..+|learning_curve\.mean|seconds|peak_bytes|operations
|(tokens|operations|seconds)_to(_target|\..+)|tokens_to_recover"""
"""The same where less is better. Of any other measure it is only said which variant's is lower or higher."""


def direction(measure: str) -> int:
    """1 where more is better, -1 where less is, by the last words of the measure's name; 0 where that is not known."""
    for sign, words in ((1, HIGHER), (-1, LOWER)):
        if re.search(rf"(^|[._])({words})$".replace("\n", ""), measure):
            return sign
    return 0


@dataclass(frozen=True)
class Verdict:
    """What the runs of one variant show against those of a baseline, in one measure."""

    measure: str
    """A dotted key of Run.measures."""
    baseline: str
    variant: str
    pairs: int
    """Seeds that both have."""
    baseline_mean: float
    """Over those of the pairs whose run did not break down, as is the variant's."""
    variant_mean: float
    difference: float
    """Mean over pairs of variant minus baseline."""
    low: float
    high: float
    """Its bootstrap interval; nan where there are too few pairs."""
    p: float
    """Of the paired permutation test, two-sided."""
    corrected: float
    """The same, corrected for the number of comparisons made at once."""
    effect: float
    """Difference in standard deviations of the paired differences (Cohen's d_z), with Hedges' correction for few pairs."""
    needed: int
    """About how many more pairs would show a difference of this size; 0 where none are needed."""
    words: str
    """better, worse (lower, higher where the better is not known), no difference shown, or too few seeds."""
    detectable: float = math.nan
    """The difference that so many pairs would have shown with probability POWER; nan where they could show none."""
    level: float = math.nan
    """One minus the interval's confidence: what Holm's procedure left to this comparison."""
    compared: int = 1
    """Comparisons that it was corrected for."""
    broke_baseline: int = 0
    """Of the pairs, how many in which the baseline's run broke down."""
    broke_variant: int = 0

    @property
    def sentence(self) -> str:
        """The verdict as a person would say it."""
        said = self.words
        if self.words == "too few seeds":
            more = f"{self.needed:,}" if self.needed < MOST_NEEDED else f"{MOST_NEEDED:,} or"
            said += f" (about {more} more would be needed)"
        elif self.words == "no difference shown" and self.detectable > 0:
            said += f" (one of {self.detectable:.2g} would probably have been)"
        elif self.words == "no difference shown" and self.detectable == 0:
            said += " (all pairs are equal)"
        elif self.words == "no difference shown":
            said += " (only a very large one could have been)"
        broke = {"baseline": self.broke_baseline, "variant": self.broke_variant}
        return said + "".join(f"; {count} of {self.pairs} of the {who} broke down" for who, count in broke.items() if count)


@cache
def flips(pairs: int) -> NDArray[np.bool_]:
    """Ways to flip signs, a row each: which are flipped. A way and its opposite are one; to flip none is not listed."""
    if pairs <= EXACT:
        numbers = np.arange(1, 2 ** (pairs - 1))
        return (numbers[:, None] >> np.arange(pairs)) & 1 == 1  # the last is never flipped: that would be an opposite
    drawn = np.random.default_rng(pairs).integers(0, 2, size=(DRAWN, pairs)).astype(bool)
    return drawn[drawn.any(1) & ~drawn.all(1)]


def permute(differences_N: NDArray[np.float64], level: float) -> tuple[float, float, float]:
    """The p of the paired permutation test, two-sided, and the interval of 1 - level that belongs to it.

    A shift of the differences is rejected where few ways to flip signs move their mean as far. One way does just when the
    shift is beyond the mean of the flipped differences or of the others; so these means, sorted, hold the interval's ends.
    The interval is nan where there are too few pairs to reject anything.
    """
    if len(differences_N) < 2:
        return 1.0, math.nan, math.nan
    flipped_FN = flips(len(differences_N))
    count_F = flipped_FN.sum(1)
    total = differences_N.sum()
    sum_F = flipped_FN @ differences_N
    means_2F = np.stack([sum_F / count_F, (total - sum_F) / (len(differences_N) - count_F)])
    means_2F[np.abs(means_2F) <= 1e-12 * np.abs(differences_N).max()] = 0.0  # what rounding left of a tie
    low_F, high_F = means_2F.min(0), means_2F.max(0)
    ways = len(flipped_FN) + 1
    beyond = (low_F <= 0).sum() if total > 0 else (high_F >= 0).sum() if total < 0 else ways - 1
    p = float((1 + beyond) / ways)
    rank = math.floor(level * ways * (1 + 1e-12))
    if not rank:
        return p, math.nan, math.nan
    return p, float(np.partition(low_F, rank - 1)[rank - 1]), float(-np.partition(-high_F, rank - 1)[rank - 1])


def least(level: float) -> int:
    """The fewest pairs whose test can reject at this level."""
    return max(2, 1 + math.ceil(-math.log2(level) - 1e-9))


def power(pairs: int, effect: float, level: float) -> float:
    """How likely the test of so many normal differences rejects, where their mean is `effect` standard deviations.

    The test can only reject at whole multiples of its smallest p. Where that alone is below the level, all differences must
    have one sign; elsewhere its power is close to that of Student's test at the nearest level that there is.
    """
    ranks = math.floor(level * 2.0 ** (pairs - 1) * (1 + 1e-12)) if pairs < 60 else math.inf
    if ranks < 1:
        return 0.0
    if ranks < 2:
        return float(stats.norm.cdf(effect) ** pairs + stats.norm.cdf(-effect) ** pairs)
    reached = level if pairs >= 60 else ranks / 2.0 ** (pairs - 1)
    limit = stats.t.ppf(1 - reached / 2, pairs - 1)
    shift = effect * pairs**0.5
    return float(stats.nct.sf(limit, pairs - 1, shift) + stats.nct.cdf(-limit, pairs - 1, shift))


def enough(effect: float, level: float) -> int:
    """The fewest pairs with which an effect of this size is found with probability POWER; MOST_NEEDED at most."""
    few, many = least(level) - 1, least(level)
    size = abs(effect)
    if math.isnan(size) or size > 10:
        return many
    while power(many, size, level) < POWER:
        few, many = many, many * 2
        if many >= MOST_NEEDED:
            return MOST_NEEDED
    while many - few > 1:
        middle = (few + many) // 2
        few, many = (middle, many) if power(middle, size, level) < POWER else (few, middle)
    return many


@cache
def smallest(pairs: int, level: float) -> float:
    """The effect that so many pairs show with probability POWER; nan where they can show none."""
    if power(pairs, 20.0, level) < POWER:
        return math.nan
    low, high = 0.0, 20.0
    for _ in range(40):
        middle = (low + high) / 2
        low, high = (middle, high) if power(pairs, middle, level) < POWER else (low, middle)
    return high


def judge(
    baseline: Sequence[Run],
    variant: Sequence[Run],
    measures: Sequence[str],
    alpha: float = ALPHA,
    names: tuple[str, str] = ("", ""),
) -> list[Verdict]:
    """What the runs of one variant show against those of a baseline, a verdict for each measure that both have.

    Runs are paired by their seeds; `names` are of the two variants, by default those of their first runs.
    """
    ours = names[0] or (baseline[0].name if baseline else "baseline")
    theirs = names[1] or (variant[0].name if variant else "variant")
    return judge_all(baseline, {theirs: variant}, measures, alpha, ours)


def judge_all(
    baseline: Sequence[Run],
    variants: Mapping[str, Sequence[Run]],
    measures: Sequence[str],
    alpha: float = ALPHA,
    name: str = "baseline",
    leave_out: Collection[tuple[str, str]] = (),
) -> list[Verdict]:
    """Every variant against one baseline in every measure that both have, corrected for all of that together.

    `leave_out` are pairs of a variant and a measure in which it is not to be judged.
    """
    compared: list[tuple[Verdict, NDArray[np.float64]]] = []
    for variant, runs in variants.items():
        for measure in measures:
            both = any(_has(run, measure) for run in baseline) and any(_has(run, measure) for run in runs)
            if both and (variant, measure) not in leave_out:
                compared.append(_begin(measure, name, baseline, variant, runs))
    return _decide(compared, alpha)


def _has(run: Run, measure: str) -> bool:
    return measure in run.measures or bool(run.broke)


def _begin(
    measure: str, name: str, baseline: Sequence[Run], variant: str, runs: Sequence[Run]
) -> tuple[Verdict, NDArray[np.float64]]:
    """The pairs' differences, and a verdict without what depends on the other comparisons."""
    ours = {run.seeds: run for run in reversed(baseline) if _has(run, measure)}
    theirs = {run.seeds: run for run in reversed(runs) if _has(run, measure)}
    seeds = [seeds for seeds in theirs if seeds in ours]
    values_2N = np.array([[run.measures.get(measure, math.inf) for run in (ours[at], theirs[at])] for at in seeds])
    values_2N = values_2N.reshape(-1, 2).T.astype(np.float64)
    broke_2N = ~np.isfinite(values_2N)
    difference_N, filled_N = _differences(values_2N, broke_2N, direction(measure))
    means = [float(row[~broke].mean()) if (~broke).any() else math.nan for row, broke in zip(values_2N, broke_2N)]
    begun = Verdict(
        measure=measure, baseline=name, variant=variant, pairs=len(seeds),
        baseline_mean=means[0], variant_mean=means[1],
        difference=float(difference_N.mean()) if len(difference_N) else math.nan, low=math.nan, high=math.nan,
        p=permute(filled_N, 0.0)[0], corrected=math.nan,
        effect=effect(difference_N), needed=0, words="",
        broke_baseline=int(broke_2N[0].sum()), broke_variant=int(broke_2N[1].sum()),
    )  # fmt: skip
    return begun, filled_N


def _differences(
    values_2N: NDArray[np.float64], broke_2N: NDArray[np.bool_], better: int
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Variant minus baseline for each pair, broken runs accounted for; and the same with a size for what is infinite.

    Where no pair is whole, a broken run is infinitely worse. Where what is worse is not known, pairs with one are left out.
    """
    whole_N = ~broke_2N.any(0)
    difference_N = np.zeros(values_2N.shape[1])
    difference_N[whole_N] = values_2N[1, whole_N] - values_2N[0, whole_N]
    if not better:
        return difference_N[whole_N], difference_N[whole_N]
    against_N = (broke_2N[0].astype(float) - broke_2N[1]) * better  # -1 where the variant alone broke and more is better
    one_N = against_N != 0
    size = np.abs(difference_N[whole_N]).max() if whole_N.any() else 1.0
    filled_N = np.where(one_N, against_N * size, difference_N)
    if not whole_N.any() and one_N.any():
        return np.where(one_N, against_N * np.inf, difference_N), filled_N
    return filled_N, filled_N


def effect(differences_N: NDArray[np.float64]) -> float:
    """Mean over standard deviation, times Hedges' (1981) exact factor against the bias of few pairs; nan below 3."""
    freedom = len(differences_N) - 1
    if freedom < 2 or not np.isfinite(differences_N).all():
        return math.nan
    mean, deviation = float(differences_N.mean()), float(differences_N.std(ddof=1))
    if deviation <= 1e-12 * np.abs(differences_N).max():
        return math.copysign(math.inf, mean) if mean else 0.0
    factor = math.exp(math.lgamma(freedom / 2) - math.lgamma((freedom - 1) / 2)) / math.sqrt(freedom / 2)
    return mean / deviation * factor


def _decide(compared: list[tuple[Verdict, NDArray[np.float64]]], alpha: float) -> list[Verdict]:
    """Holm's procedure over the comparisons that could show something, then every verdict's interval and words."""
    family = [at for at, (_, filled_N) in enumerate(compared) if len(filled_N) >= least(alpha)]
    family.sort(key=lambda at: compared[at][0].p)
    levels: dict[int, float] = {}
    corrected: dict[int, float] = {}
    shown = 0
    for rank, at in enumerate(family):
        left = len(family) - rank
        corrected[at] = min(1.0, max([left * compared[at][0].p, *corrected.values()]))
        if shown == rank and corrected[at] <= alpha * (1 + 1e-12):
            shown += 1
            levels[at] = alpha / left
    rest = alpha / max(1, len(family) - shown)  # what the first that was not shown was held to, and the others with it
    alone = alpha / max(1, len(compared) - shown)  # if those with too few pairs had enough
    verdicts = []
    for at, (begun, filled_N) in enumerate(compared):
        level = levels.get(at, rest if at in corrected else alone)
        counted = replace(begun, corrected=corrected.get(at, begun.p), compared=max(1, len(family)))
        verdicts.append(_finish(counted, filled_N, level, at in levels))
    return verdicts


def _finish(begun: Verdict, filled_N: NDArray[np.float64], level: float, shown: bool) -> Verdict:
    pairs, better = len(filled_N), direction(begun.measure)
    _, low, high = permute(filled_N, level)
    if not math.isfinite(begun.difference):
        low = high = math.nan
    deviation = float(filled_N.std(ddof=1)) if pairs > 1 else math.nan
    detectable = smallest(pairs, level) * deviation
    if shown:
        sign = 1 if begun.difference > 0 else -1
        words, needed = ("better" if sign == better else "worse") if better else ("higher" if sign > 0 else "lower"), 0
    else:
        words = "too few seeds" if pairs < least(level) else "no difference shown"
        wanted = enough(begun.effect, level)
        needed = wanted if wanted == MOST_NEEDED else max(1, wanted - pairs)
    return replace(begun, low=low, high=high, words=words, needed=needed, detectable=detectable, level=level)
