"""The paired permutation test of a mean difference: p, interval, power, and the pairs it takes.

Where two variants are equal, each paired difference is as likely to be positive as negative; p is
the share of all ways to flip the signs of the differences that leave their mean at least as far
from 0 as it is. The interval holds every shift that the same test does not reject, so p and
interval cannot contradict each other. This is the wild bootstrap with signs for weights and the
null hypothesis imposed (Davidson and Flachaire 2008), and the ends of the interval are means of
subsets of the differences (Hartigan 1969). It is exact at any number of pairs where differences are
symmetric, as those of two equal variants always are. The usual bootstrap of the mean, which draws
differences with replacement, covers too rarely with few pairs (docs/log has the figures), and
Student's interval needs normal differences.

With n pairs p cannot be below 2 / 2**n: five seeds can never show a difference at 0.05.
"""

import math
from functools import cache

import numpy as np
from numpy.typing import NDArray
from scipy import optimize, special, stats

POWER = 0.8
"""The probability with which a difference should be found, for `enough` and `smallest`."""
SURE = 0.8
"""The probability with which `enough_range` should hold the true number."""
EXACT = 14
"""Up to so many pairs every way to flip the signs is counted; above, DRAWN of them at random."""
DRAWN = 9999
MOST_NEEDED = 10_000
"""Pairs beyond which nobody would go on counting."""
HUGE_EFFECT = 10
"""Standard deviations from which on the fewest pairs that can show anything are enough."""
ROUNDING = 1 + 1e-12
"""Allows for rounding where a product should be a whole number or a level exactly."""


@cache
def flips(pairs: int) -> NDArray[np.bool_]:
    """Ways to flip signs, shape (F, N): which differences are flipped.

    A way and its opposite are one; to flip none is not listed.
    """
    if pairs <= EXACT:
        ways_F = np.arange(1, 2 ** (pairs - 1))  # the last is never flipped: that is an opposite
        return (ways_F[:, None] >> np.arange(pairs)) & 1 == 1
    drawn_FN = np.random.default_rng(pairs).integers(0, 2, size=(DRAWN, pairs)).astype(bool)
    return drawn_FN[drawn_FN.any(1) & ~drawn_FN.all(1)]


def permute(differences_N: NDArray[np.float64], level: float) -> tuple[float, float, float]:
    """The two-sided p of the paired permutation test, and the ends of its interval of 1 - level.

    A shift of the differences is rejected where few ways to flip signs move their mean as far. One
    way does just when the shift is beyond the mean of the flipped differences or of the others; so
    these means, sorted, hold the interval's ends. The interval is nan where there are too few pairs
    to reject anything.
    """
    if len(differences_N) < 2:
        return 1.0, math.nan, math.nan
    flipped_FN = flips(len(differences_N))
    count_F = flipped_FN.sum(1)
    total = differences_N.sum()
    sum_F = flipped_FN @ differences_N
    means_2F = np.stack([sum_F / count_F, (total - sum_F) / (len(differences_N) - count_F)])
    left_by_rounding = np.abs(means_2F) <= 1e-12 * np.abs(differences_N).max()
    means_2F[left_by_rounding] = 0.0  # a tie
    low_F, high_F = means_2F.min(0), means_2F.max(0)
    ways = len(flipped_FN) + 1
    if total > 0:
        at_least_as_far = (low_F <= 0).sum()
    elif total < 0:
        at_least_as_far = (high_F >= 0).sum()
    else:
        at_least_as_far = ways - 1
    p = float((1 + at_least_as_far) / ways)
    rank = math.floor(level * ways * ROUNDING)
    if not rank:
        return p, math.nan, math.nan
    low = np.partition(low_F, rank - 1)[rank - 1]
    high = -np.partition(-high_F, rank - 1)[rank - 1]
    return p, float(low), float(high)


def least(level: float) -> int:
    """The fewest pairs whose test can reject at this level."""
    return max(2, 1 + math.ceil(-math.log2(level) - 1e-9))


def effect(differences_N: NDArray[np.float64]) -> float:
    """Mean over standard deviation (Cohen's d_z) times `hedges_factor`; nan below 3 pairs."""
    freedom = len(differences_N) - 1
    if freedom < 2 or not np.isfinite(differences_N).all():
        return math.nan
    with np.errstate(over="ignore", invalid="ignore"):  # the square of a perplexity may overflow
        mean, sigma = float(differences_N.mean()), float(differences_N.std(ddof=1))
    if sigma <= 1e-12 * np.abs(differences_N).max():
        return math.copysign(math.inf, mean) if mean else 0.0
    return mean / sigma * hedges_factor(freedom)


def hedges_factor(freedom: int) -> float:
    """Hedges' (1981) exact factor against the bias of an effect from few pairs."""
    ratio_of_gammas = math.exp(math.lgamma(freedom / 2) - math.lgamma((freedom - 1) / 2))
    return ratio_of_gammas / math.sqrt(freedom / 2)


def power(pairs: int, effect: float, level: float) -> float:
    """How likely the test rejects where differences are normal with mean / sigma = `effect`.

    The test can only reject at whole multiples of its smallest p. Where that alone is below the
    level, all differences must have one sign; elsewhere its power is close to that of Student's
    test at the nearest level that there is.
    """
    ranks = math.floor(level * 2.0 ** (pairs - 1) * ROUNDING) if pairs < 60 else math.inf
    if ranks < 1:
        return 0.0
    if ranks < 2:
        return float(stats.norm.cdf(effect) ** pairs + stats.norm.cdf(-effect) ** pairs)
    reached = level if pairs >= 60 else ranks / 2.0 ** (pairs - 1)
    limit = stats.t.ppf(1 - reached / 2, pairs - 1)
    shift = effect * pairs**0.5
    return float(stats.nct.sf(limit, pairs - 1, shift) + stats.nct.cdf(-limit, pairs - 1, shift))


def enough(effect: float, level: float) -> int:
    """The fewest pairs that find an effect of this size with probability POWER, MOST_NEEDED at
    most.
    """
    few, many = least(level) - 1, least(level)
    size = abs(effect)
    if math.isnan(size) or size > HUGE_EFFECT:
        return many
    while power(many, size, level) < POWER:
        few, many = many, many * 2
        if many >= MOST_NEEDED:
            return MOST_NEEDED
    while many - few > 1:
        middle = (few + many) // 2
        if power(middle, size, level) < POWER:
            few = middle
        else:
            many = middle
    return many


def enough_range(effect: float, pairs: int, level: float) -> tuple[int, int]:
    """The range of how many pairs are enough, as far as this effect over so many pairs can tell.

    By the interval of the effect (Cohen's d_z) that inverts Student's noncentral distribution,
    which is taken as a mean over quantiles of the standard deviation; it holds the true number with
    probability SURE where differences are normal. 0 and 0 where the effect is nan.
    """
    if math.isnan(effect):
        return 0, 0
    if abs(effect) > HUGE_EFFECT:
        return least(level), least(level)
    statistic = abs(effect) * pairs**0.5
    quantiles_Q = stats.chi2.ppf((np.arange(200) + 0.5) / 200, pairs - 1)
    scale_Q = np.sqrt(quantiles_Q / (pairs - 1))

    def effect_with(share: float) -> float:
        """The effect with which this share of the statistics drawn would be below the observed."""

        def excess(shift: float) -> float:
            return float(special.ndtr(statistic * scale_Q - shift).mean()) - share

        shift = optimize.brentq(excess, -10, 10 + statistic * scale_Q[-1])
        return max(0.0, shift) / pairs**0.5

    large, small = effect_with((1 - SURE) / 2), effect_with((1 + SURE) / 2)
    return enough(large, level), enough(small, level) if small else MOST_NEEDED


@cache
def smallest(pairs: int, level: float) -> float:
    """The effect that so many pairs show with probability POWER; nan where they can show none."""
    if power(pairs, 20.0, level) < POWER:
        return math.nan
    low, high = 0.0, 20.0
    for _ in range(40):
        middle = (low + high) / 2
        if power(pairs, middle, level) < POWER:
            low = middle
        else:
            high = middle
    return high
