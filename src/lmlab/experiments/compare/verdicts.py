"""Whether one way of learning is better than another: paired by seed, with intervals, corrected for
how many were compared.

One procedure gives both p and interval, so that they cannot contradict each other: the paired
permutation test. Where two variants are equal, each paired difference is as likely to be plus as
minus; p is the share of all ways to flip the signs of the differences that leave their mean at
least as far from 0 as it is. The interval holds every shift that the same test does not reject.
This is the wild bootstrap with signs for weights and the null hypothesis imposed (Davidson and
Flachaire 2008), and its ends are means of subsets of the differences (Hartigan 1969). It is exact
at any number of pairs where differences are symmetric, as those of two equal variants always are.
The usual bootstrap of the mean, which draws differences with replacement, holds too rarely with few
pairs (LOG.md has the figures), and Student's interval needs normal differences.

With n pairs p cannot be below 2 / 2**n: five seeds can never show a difference at 0.05. That is
then what is said, and never "no difference shown". Corrected is after Holm (1979) over all measures
of all variants that are judged at once and that have enough pairs to show anything; an interval has
the level that Holm's procedure left to its comparison. A primary measure, if one is declared, is a
family of its own: the others do not weaken it, and are corrected among themselves.

A run that diverged, or never reached a target, has no number but is an observation (`pairing`).
Where there is one among the pairs, the same test is made on signed ranks of the differences
(Wilcoxon 1945): a pair in which only one run has a number differs by more than any that has two,
all such are tied, and a pair with none is a tie, which is ranked and then counts for nothing (Pratt
1959). Ranks need no number, and flipping signs keeps the test exact with ties. There is no mean
then, no interval and no effect, as none would be of all the runs. Which of the two tests is made
depends on the sizes of the differences alone and not on their signs, so p keeps what it promises.

Runs without a partner decide nothing, but may have been left out for what they came to. A
difference that is shown has to be shown as well, at the same level, where they are filled in with
the best and with the worst value seen, and whichever counts of several runs with the same seeds;
else the verdict is "unsettled".
"""

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache

import numpy as np
from numpy.typing import NDArray
from scipy import optimize, special, stats

from lmlab.experiments.compare import anytime as betting
from lmlab.experiments.compare.meaning import direction as direction
from lmlab.experiments.compare.pairing import Kind, Pairs, Seeds, observe, pair
from lmlab.experiments.compare.run import Run

ALPHA = 0.05
POWER = 0.8
"""How likely a difference should be found, where it is said how many more seeds that takes, or how
small it may be.
"""
SURE = 0.8
"""How often the range of how many more seeds that takes should hold the true number."""
EXACT = 14
"""Up to so many pairs every way to flip the signs is counted; above, DRAWN of them at random."""
DRAWN = 9999
MOST_NEEDED = 10_000
"""Pairs beyond which nobody would go on counting."""
SHOWN = ("better", "worse", "lower", "higher")


@dataclass(frozen=True)
class Verdict:
    """What the runs of one variant show against those of a baseline, in one measure."""

    measure: str
    """A dotted key of Run.measures."""
    baseline: str
    variant: str
    pairs: int
    """Seeds that both have, and in which both are observed."""
    baseline_mean: float
    """Over the pairs, as is the variant's; nan where any run of the pairs has no number."""
    variant_mean: float
    difference: float
    """Mean over pairs of variant minus baseline; nan where any run of the pairs has no number."""
    low: float
    high: float
    """The interval of the difference that the test does not reject; nan where there are too few
    pairs, or no numbers. Of a test that may be looked at any time: of the median of the pairs'
    differences.
    """
    p: float
    """Of the paired permutation test, two-sided, or of the test that may be looked at any time."""
    corrected: float
    """The same, corrected for the number of comparisons made at once."""
    effect: float
    """Difference in standard deviations of the paired differences (Cohen's d_z), with Hedges'
    correction for few pairs.
    """
    needed: int
    """About how many more pairs would show a difference of this size; 0 where none are needed."""
    words: str
    """better, worse (lower, higher where the better is not known), no difference shown, too few
    seeds; unsettled, where runs that were left out could turn what the pairs show; or no verdict,
    where the numbers do not compare.
    """
    detectable: float = math.nan
    """The difference that so many pairs would have shown with probability POWER; nan where they
    could show none.
    """
    level: float = math.nan
    """One minus the interval's confidence: what Holm's procedure left to this comparison."""
    compared: int = 1
    """Comparisons that it was corrected for."""
    broke_baseline: int = 0
    """Of the pairs, how many in which the baseline's run diverged."""
    broke_variant: int = 0
    unreached_baseline: int = 0
    """Of the pairs, how many in which the baseline's run never reached the target."""
    unreached_variant: int = 0
    early_baseline: int = 0
    """Of the pairs, how many in which the baseline's first validation was below the target
    already.
    """
    early_variant: int = 0
    survivors_baseline: float = math.nan
    """Mean over the pairs' runs of the baseline that have a number, where some do not: of
    survivors, and no fair mean.
    """
    survivors_variant: float = math.nan
    infinite_baseline: int = 0
    """Of the pairs, how many in which the baseline's run ended and has no finite number."""
    infinite_variant: int = 0
    left_out: int = 0
    """Seeds that make no pair: only one side ran them, measured them or finished them."""
    several: int = 0
    """Of the pairs, how many of which a side has runs with other results, though with the same
    seeds and params.
    """
    needed_low: int = 0
    needed_high: int = 0
    """The range of `needed`, which holds the true number SURE of the time; 0 and 0 where it cannot
    be told.
    """
    test: str = "differences"
    """What was tested: differences, ranks, or signs (which may be looked at any time)."""
    role: str = ""
    """primary, secondary, or empty where no measure was declared to be the primary one."""
    reason: str = ""
    """Why there is no verdict, what the pairs alone would show where it is unsettled, or that runs
    that were left out could show a difference where the pairs do not.
    """

    @property
    def sentence(self) -> str:
        """The verdict as a person would say it."""
        if self.words == "no verdict":
            return f"no verdict: {self.reason}"
        said = [self.words + self._detail(), *self._counted()]
        if self.left_out and self.words != "unsettled":
            could = (
                ", which could have shown one"
                if self.words == "no difference shown" and self.reason
                else ""
            )
            said.append(f"{self.left_out} left out{could}")
        return "; ".join(said)

    def _detail(self) -> str:
        """What there is to say in brackets."""
        if self.words == "unsettled":
            others = [f"the {self.left_out} left out had the best or the worst value seen"] * bool(
                self.left_out
            )
            others += [f"of the {self.several} with several results others counted"] * bool(
                self.several
            )
            return f" ({self.reason} in the {self.pairs} pairs, but not if {' and '.join(others)})"
        if self.words == "too few seeds":
            return f" ({self._more_seeds()})"
        if self.words != "no difference shown":
            return ""
        if self.detectable > 0:
            return f" (one of {self.detectable:.2g} would probably have been)"
        if self.pairs and self.broke_baseline == self.broke_variant == self.pairs:
            return " (all runs diverged)"
        if self.pairs and self.infinite_baseline == self.infinite_variant == self.pairs:
            return " (no run has a finite number)"
        if self.pairs and self.unreached_baseline == self.unreached_variant == self.pairs:
            return " (no run reached it)"
        if self.detectable == 0:
            return " (all pairs are equal)"
        return "" if self.test != "differences" else " (only a very large one could have been)"

    def _more_seeds(self) -> str:
        low, high = self.needed_low or self.needed, self.needed_high or self.needed
        if low >= MOST_NEEDED:
            return f"{MOST_NEEDED:,} or more would be needed"
        if high >= MOST_NEEDED or not self.needed_high:
            perhaps = ", and perhaps very many" if high >= MOST_NEEDED else ""
            return f"about {low:,} more would be needed at the least{perhaps}"
        return f"about {low:,}{f' to {high:,}' if high > low else ''} more would be needed"

    def _counted(self) -> list[str]:
        """How many of the pairs' runs have no number, and why."""
        counts = (
            ("diverged", self.broke_baseline, self.broke_variant),
            ("have no finite number", self.infinite_baseline, self.infinite_variant),
            ("never reached it", self.unreached_baseline, self.unreached_variant),
            ("were there by the first validation", self.early_baseline, self.early_variant),
        )
        return [
            f"{count} of {self.pairs} of the {who} {what}"
            for what, *both in counts
            for who, count in zip(("baseline", "variant"), both)
            if count
        ]


@cache
def flips(pairs: int) -> NDArray[np.bool_]:
    """Ways to flip signs, a row each: which are flipped. A way and its opposite are one; to flip
    none is not listed.
    """
    if pairs <= EXACT:
        numbers = np.arange(1, 2 ** (pairs - 1))
        return (
            numbers[:, None] >> np.arange(pairs)
        ) & 1 == 1  # the last is never flipped: that would be an opposite
    drawn = np.random.default_rng(pairs).integers(0, 2, size=(DRAWN, pairs)).astype(bool)
    return drawn[drawn.any(1) & ~drawn.all(1)]


def permute(differences_N: NDArray[np.float64], level: float) -> tuple[float, float, float]:
    """The p of the paired permutation test, two-sided, and the interval of 1 - level that belongs
    to it.

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
    means_2F[np.abs(means_2F) <= 1e-12 * np.abs(differences_N).max()] = (
        0.0  # what rounding left of a tie
    )
    low_F, high_F = means_2F.min(0), means_2F.max(0)
    ways = len(flipped_FN) + 1
    beyond = (low_F <= 0).sum() if total > 0 else (high_F >= 0).sum() if total < 0 else ways - 1
    p = float((1 + beyond) / ways)
    rank = math.floor(level * ways * (1 + 1e-12))
    if not rank:
        return p, math.nan, math.nan
    return (
        p,
        float(np.partition(low_F, rank - 1)[rank - 1]),
        float(-np.partition(-high_F, rank - 1)[rank - 1]),
    )


def least(level: float) -> int:
    """The fewest pairs whose test can reject at this level."""
    return max(2, 1 + math.ceil(-math.log2(level) - 1e-9))


def power(pairs: int, effect: float, level: float) -> float:
    """How likely the test of so many normal differences rejects, where their mean is `effect`
    standard deviations.

    The test can only reject at whole multiples of its smallest p. Where that alone is below the
    level, all differences must have one sign; elsewhere its power is close to that of Student's
    test at the nearest level that there is.
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
    """The fewest pairs with which an effect of this size is found with probability POWER;
    MOST_NEEDED at most.
    """
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


def enough_range(effect: float, pairs: int, level: float) -> tuple[int, int]:
    """From how many to how many pairs are enough, as far as so many pairs with this effect (Cohen's
    d_z) can tell.

    By the interval of the effect that inverts Student's noncentral distribution, which is taken as
    a mean over quantiles of the standard deviation; it holds SURE of the time where differences are
    normal.
    """
    if math.isnan(effect):
        return 0, 0
    if abs(effect) > 10:
        return least(level), least(level)
    statistic = abs(effect) * pairs**0.5
    scale_Q = np.sqrt(stats.chi2.ppf((np.arange(200) + 0.5) / 200, pairs - 1) / (pairs - 1))

    def effect_at(share: float) -> float:
        """The effect beside which this share of the statistics drawn would be smaller than the one
        there is.
        """

        def excess(shift: float) -> float:
            return float(special.ndtr(statistic * scale_Q - shift).mean()) - share

        return max(0.0, optimize.brentq(excess, -10, 10 + statistic * scale_Q[-1])) / pairs**0.5

    large, small = effect_at((1 - SURE) / 2), effect_at((1 + SURE) / 2)
    return enough(large, level), enough(small, level) if small else MOST_NEEDED


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
    """What the runs of one variant show against those of a baseline, a verdict for each measure
    that both have.

    Runs are paired by their seeds; `names` are of the two variants, by default those of their first
    runs.
    """
    ours = names[0] or (baseline[0].name if baseline else "baseline")
    theirs = names[1] or (variant[0].name if variant else "variant")
    return judge_all(baseline, {theirs: variant}, measures, alpha, ours)


@dataclass(frozen=True)
class Rules:
    """How a set of comparisons is judged."""

    alpha: float = ALPHA
    primary: str = ""
    """The measure that is a family of its own; the others are secondary. Empty: all are one
    family.
    """
    anytime: bool = False
    """Whether the test is one that may be looked at as often as one likes."""

    @property
    def least(self) -> int:
        """The fewest pairs that can show anything in a comparison alone."""
        return betting.least(self.alpha) if self.anytime else least(self.alpha)

    def role(self, measure: str) -> str:
        return "" if not self.primary else "primary" if measure == self.primary else "secondary"


def judge_all(
    baseline: Sequence[Run],
    variants: Mapping[str, Sequence[Run]],
    measures: Sequence[str],
    alpha: float = ALPHA,
    name: str = "baseline",
    leave_out: Mapping[tuple[str, str], str] | None = None,
    unfinished: Mapping[str, Collection[Seeds]] | None = None,
    rules: Rules | None = None,
) -> list[Verdict]:
    """Every variant against one baseline in every measure that both have, corrected for all of that
    together.

    `leave_out` has the reason for each pair of a variant and a measure in which it is not to be
    judged; `unfinished`, by the names of the variants and the baseline, the seeds whose runs were
    begun and have no results.
    """
    with np.errstate(
        over="ignore", invalid="ignore"
    ):  # a perplexity may be as large as a float can be
        return _judge_all(
            baseline,
            variants,
            measures,
            name,
            leave_out or {},
            unfinished or {},
            rules or Rules(alpha),
        )


def _judge_all(
    baseline: Sequence[Run],
    variants: Mapping[str, Sequence[Run]],
    measures: Sequence[str],
    name: str,
    leave_out: Mapping[tuple[str, str], str],
    begun_seeds: Mapping[str, Collection[Seeds]],
    rules: Rules,
) -> list[Verdict]:
    cases: list[_Case] = []
    refused: list[Verdict] = []
    for variant, runs in variants.items():
        seeds = begun_seeds.get(name, ()), begun_seeds.get(variant, ())
        for measure in measures:
            case = _begin(measure, (name, variant), (baseline, runs), seeds, rules)
            if reason := leave_out.get((variant, measure)):
                refused.append(_no_verdict(case.verdict, reason))
            elif case.measured_by_both:
                if not case.pairs.ranked:
                    refused.append(
                        _no_verdict(
                            case.verdict,
                            "runs diverged or have no number, and it is not known what is worse",
                        )
                    )
                else:
                    cases.append(case)
    found = [*_decide(cases, rules), *refused]
    order = {
        (variant, measure): place
        for place, (variant, measure) in enumerate((v, m) for v in variants for m in measures)
    }
    return sorted(found, key=lambda one: order[one.variant, one.measure])


@dataclass(frozen=True)
class _Case:
    """A comparison before it is known which others are made with it, and a verdict without what
    depends on those.
    """

    verdict: Verdict
    pairs: Pairs
    better: int
    scores: NDArray[np.float64]
    """What the test flips the signs of: the differences, or their signed ranks."""
    measured_by_both: bool


def _begin(
    measure: str,
    names: tuple[str, str],
    sides: tuple[Sequence[Run], Sequence[Run]],
    unfinished: tuple[Collection[Seeds], Collection[Seeds]],
    rules: Rules,
) -> _Case:
    better = direction(measure, [*sides[0], *sides[1]])
    pairs = pair(*sides, measure, better, unfinished)
    by_both = all(any(observe(run, measure, better) for run in side) for side in sides)
    values_2N = pairs.values
    difference_N = differences(values_2N)
    scores_N = scores(values_2N)
    whole = bool(np.isfinite(values_2N).all())
    means = [_mean(row_N) for row_N in values_2N]
    diverged, infinite, unreached, early = (
        pairs.count(kind)
        for kind in (Kind.DIVERGED, Kind.NO_NUMBER, Kind.NOT_REACHED, Kind.BEFORE_FIRST)
    )
    begun = Verdict(
        measure=measure,
        baseline=names[0],
        variant=names[1],
        pairs=len(pairs.ours),
        baseline_mean=means[0] if whole else math.nan,
        variant_mean=means[1] if whole else math.nan,
        difference=_mean(difference_N) if whole else math.nan,
        low=math.nan,
        high=math.nan,
        p=_p(scores_N, rules.anytime),
        corrected=math.nan,
        effect=effect(difference_N) if whole else math.nan,
        needed=0,
        words="",
        left_out=len(pairs.alone),
        role=rules.role(measure),
        several=len(pairs.again),
        broke_baseline=diverged[0],
        broke_variant=diverged[1],
        infinite_baseline=infinite[0],
        infinite_variant=infinite[1],
        unreached_baseline=unreached[0],
        unreached_variant=unreached[1],
        early_baseline=early[0],
        early_variant=early[1],
        survivors_baseline=math.nan if whole else means[0],
        survivors_variant=math.nan if whole else means[1],
        test="signs" if rules.anytime else "differences" if whole else "ranks",
    )
    return _Case(begun, pairs, better, scores_N, by_both)


def _mean(values_N: NDArray[np.float64]) -> float:
    """Of those that are finite; nan where none is."""
    finite_N = values_N[np.isfinite(values_N)]
    return float(finite_N.mean()) if len(finite_N) else math.nan


def differences(values_2N: NDArray[np.float64]) -> NDArray[np.float64]:
    """Variant minus baseline; 0 where both are tied in the same place, infinite where only one of
    them has a number.
    """
    tied_N = values_2N[0] == values_2N[1]
    with np.errstate(invalid="ignore"):
        return np.where(tied_N, 0.0, values_2N[1] - values_2N[0])


def scores(values_2N: NDArray[np.float64]) -> NDArray[np.float64]:
    """The differences where every run has a number, otherwise their signed ranks; one of 0 is
    ranked and scores 0.
    """
    differences_N = differences(values_2N)
    if np.isfinite(values_2N).all():
        return differences_N
    return np.sign(differences_N) * stats.rankdata(np.abs(differences_N))


def _p(scores_N: NDArray[np.float64], anytime: bool) -> float:
    return betting.sign_test(scores_N) if anytime else permute(scores_N, 0.0)[0]


def _sign(scores_N: NDArray[np.float64], anytime: bool) -> int:
    """1 where the variant's values are the higher, as the test sees it, -1 where they are the
    lower.
    """
    return int(np.sign(np.sign(scores_N).sum() if anytime else scores_N.sum()))


def effect(differences_N: NDArray[np.float64]) -> float:
    """Mean over standard deviation, times Hedges' (1981) exact factor against the bias of few
    pairs; nan below 3.
    """
    freedom = len(differences_N) - 1
    if freedom < 2 or not np.isfinite(differences_N).all():
        return math.nan
    with np.errstate(
        over="ignore", invalid="ignore"
    ):  # the square of a perplexity may be beyond what can be counted
        mean, sigma = float(differences_N.mean()), float(differences_N.std(ddof=1))
    if sigma <= 1e-12 * np.abs(differences_N).max():
        return math.copysign(math.inf, mean) if mean else 0.0
    return mean / sigma * _hedges(freedom)


def _hedges(freedom: int) -> float:
    return math.exp(math.lgamma(freedom / 2) - math.lgamma((freedom - 1) / 2)) / math.sqrt(
        freedom / 2
    )


def _no_verdict(begun: Verdict, reason: str) -> Verdict:
    return replace(
        begun,
        words="no verdict",
        reason=reason,
        p=math.nan,
        difference=math.nan,
        effect=math.nan,
        compared=0,
    )


def _decide(cases: list[_Case], rules: Rules) -> list[Verdict]:
    """Holm's procedure over each family of comparisons that could show something; every verdict's
    interval and words.
    """
    verdicts: list[Verdict] = []
    for role in dict.fromkeys(case.verdict.role for case in cases):
        verdicts += _decide_family([case for case in cases if case.verdict.role == role], rules)
    return verdicts


def _decide_family(cases: list[_Case], rules: Rules) -> list[Verdict]:
    alpha = rules.alpha
    family = [at for at, case in enumerate(cases) if case.verdict.pairs >= rules.least]
    family.sort(key=lambda at: cases[at].verdict.p)
    levels: dict[int, float] = {}
    corrected: dict[int, float] = {}
    shown = 0
    for rank, at in enumerate(family):
        left = len(family) - rank
        corrected[at] = min(1.0, max([left * cases[at].verdict.p, *corrected.values()]))
        if shown == rank and corrected[at] <= alpha * (1 + 1e-12):
            shown += 1
            levels[at] = alpha / left
    rest = alpha / max(
        1, len(family) - shown
    )  # what the first that was not shown was held to, and the others with it
    alone = alpha / max(1, len(cases) - shown)  # if those with too few pairs had enough
    verdicts = []
    for at, case in enumerate(cases):
        level = levels.get(at, rest if at in corrected else alone)
        counted = replace(
            case.verdict, corrected=corrected.get(at, case.verdict.p), compared=max(1, len(family))
        )
        judged = replace(case, verdict=counted)
        verdicts.append(_finish(judged, level, rules, at in levels))
    return verdicts


def _finish(case: _Case, level: float, rules: Rules, shown: bool) -> Verdict:
    """The verdict's words and interval at the level that was left to it."""
    low, high = _interval(case, level, rules)
    verdict = replace(case.verdict, level=level, low=low, high=high)
    if shown:
        words = _words(_sign(case.scores, rules.anytime), case.better)
        if _stands(case, level, rules):
            return replace(verdict, words=words)
        return replace(verdict, words="unsettled", reason=words)
    fewest = betting.least(level) if rules.anytime else least(level)
    words = "too few seeds" if verdict.pairs < fewest else "no difference shown"
    if words == "no difference shown" and _could_show(case, level, rules):
        verdict = replace(verdict, reason="those left out could show one")
    if rules.anytime:
        return replace(verdict, words=words, needed=max(1, fewest - verdict.pairs))
    with np.errstate(over="ignore"):
        sigma = (
            float(case.scores.std(ddof=1))
            if verdict.test == "differences" and verdict.pairs > 1
            else math.nan
        )
    wanted = enough(verdict.effect, level)
    low, high = (_more(pairs, verdict.pairs) for pairs in _enough_range(verdict, level))
    return replace(
        verdict,
        words=words,
        needed=_more(wanted, verdict.pairs),
        needed_low=low,
        needed_high=high,
        detectable=smallest(verdict.pairs, level) * sigma,
    )


def _enough_range(verdict: Verdict, level: float) -> tuple[int, int]:
    effect = verdict.effect / _hedges(verdict.pairs - 1) if verdict.pairs > 2 else math.nan
    return enough_range(effect, verdict.pairs, level)


def _more(wanted: int, pairs: int) -> int:
    """How many more pairs than there are; 0 stands for what is not known."""
    return wanted if wanted in (0, MOST_NEEDED) else max(1, wanted - pairs)


def _words(sign: int, better: int) -> str:
    if not better:
        return "higher" if sign > 0 else "lower"
    return "better" if sign == better else "worse"


def _interval(case: _Case, level: float, rules: Rules) -> tuple[float, float]:
    """Of the mean of the differences or, at any time, of their median; nan where a run has no
    number.
    """
    if not np.isfinite(case.pairs.values).all():
        return math.nan, math.nan
    if rules.anytime:
        return betting.interval(case.scores, level)
    _, low, high = permute(case.scores, level)
    return low, high


def _stands(case: _Case, level: float, rules: Rules) -> bool:
    """Whether what the pairs show is shown as well with all that was left out filled in, whichever
    side that favours.
    """
    sign = _sign(case.scores, rules.anytime)
    return all(shown == sign for shown in _filled(case, level, rules))


def _could_show(case: _Case, level: float, rules: Rules) -> bool:
    """Whether a difference would be shown with all that was left out filled in, in favour of either
    side.
    """
    return any(_filled(case, level, rules))


def _filled(case: _Case, level: float, rules: Rules) -> list[int]:
    """What would be shown if what was left out favoured the variant, and if the baseline: 1 higher,
    -1 lower, 0 nothing.
    """
    if not case.pairs.alone and not case.pairs.again:
        return []
    found = []
    for favour in (True, False):
        filled_M = scores(case.pairs.filled(case.better, favour))
        shown = _p(filled_M, rules.anytime) <= level * (1 + 1e-12)
        found.append(_sign(filled_M, rules.anytime) if shown else 0)
    return found
