"""Whether one way of learning is better than another: paired by seed, with intervals, corrected for
how many are compared.

p and interval are those of the paired permutation test (`permutation`), or of a test that may be
looked at as often as one likes (`anytime`). Where five seeds can never show a difference, the
verdict is "too few seeds", and never "no difference shown". Corrected is after Holm (1979) over all
measures of all variants that are judged at once and that have enough pairs to show anything; an
interval has the level that Holm's procedure left to its comparison. A primary measure, if one is
declared, is a family of its own: the others do not weaken it, and are corrected among themselves.

A run that diverged, or never reached a target, has no number but is an observation (`pairing`).
Where there is one among the pairs, the same test is made on signed ranks of the differences
(Wilcoxon 1945): a pair in which only one run has a number differs by more than any that has two,
all such are tied, and a pair with none is a tie, which is ranked and then counts for nothing (Pratt
1959). Ranks need no number, and flipping signs keeps the test exact with ties. There is no mean
then, no interval and no effect, as none would be of all the runs. Which of the two tests is made
depends on the sizes of the differences alone and not on their signs, so p keeps what it promises.

Runs without a partner decide nothing, but may have been left out because of what they came to. A
difference has to be shown as well, at the same level, where they are filled in with the best and
with the worst value seen, and whichever counts of several runs with the same seeds. Otherwise the
verdict is "unsettled".
"""

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from lmlab.experiments.compare import anytime, permutation
from lmlab.experiments.compare.meaning import direction
from lmlab.experiments.compare.pairing import Kind, Pairs, Seeds, observe, pair
from lmlab.experiments.compare.run import Run
from lmlab.experiments.compare.verdict import Conclusion, Role, Statistic
from lmlab.experiments.compare.verdict import Verdict as Verdict

ALPHA = 0.05


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
        return self.least_at(self.alpha)

    def least_at(self, level: float) -> int:
        """The fewest pairs that can show anything at this level."""
        return anytime.least(level) if self.anytime else permutation.least(level)

    def role(self, measure: str) -> Role:
        """The family of a measure."""
        if not self.primary:
            return Role.NONE
        return Role.PRIMARY if measure == self.primary else Role.SECONDARY

    def p(self, scores_N: NDArray[np.float64]) -> float:
        """Two-sided, of the test that these rules take."""
        return (
            anytime.sign_test(scores_N) if self.anytime else permutation.permute(scores_N, 0.0)[0]
        )

    def sign(self, scores_N: NDArray[np.float64]) -> int:
        """1 where the variant's values are higher as the test sees it, -1 where they are lower."""
        total = np.sign(scores_N).sum() if self.anytime else scores_N.sum()
        return int(np.sign(total))

    def interval(self, scores_N: NDArray[np.float64], level: float) -> tuple[float, float]:
        """Of the mean of the differences or, for the test at any time, of their median."""
        if self.anytime:
            return anytime.interval(scores_N, level)
        _, low, high = permutation.permute(scores_N, level)
        return low, high


def judge(
    baseline: Sequence[Run],
    variant: Sequence[Run],
    measures: Sequence[str],
    alpha: float = ALPHA,
    names: tuple[str, str] = ("", ""),
) -> list[Verdict]:
    """What the runs of one variant show against those of a baseline: a verdict for each measure
    that both have.

    Runs are paired by their seeds; `names` are of the two variants, by default those of their first
    runs.
    """
    baseline_name = names[0] or (baseline[0].name if baseline else "baseline")
    variant_name = names[1] or (variant[0].name if variant else "variant")
    return judge_all(baseline, {variant_name: variant}, measures, alpha, baseline_name)


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
    """Every variant against one baseline in every measure that both have, all corrected together.

    `leave_out` holds the reason for each pair of a variant and a measure that is not to be judged.
    `unfinished` holds the seeds whose runs began and have no results, by the names of the variants
    and of the baseline.
    """
    rules = rules or Rules(alpha)
    leave_out, unfinished = leave_out or {}, unfinished or {}
    cases: list[_Case] = []
    refused: list[Verdict] = []
    with np.errstate(over="ignore", invalid="ignore"):  # a perplexity may be as large as a float
        for variant, runs in variants.items():
            seeds = unfinished.get(name, ()), unfinished.get(variant, ())
            for measure in measures:
                case = _begin(measure, (name, variant), (baseline, runs), seeds, rules)
                reason = leave_out.get((variant, measure), "")
                if not reason and not case.measured_by_both:
                    continue
                if not reason and not case.pairs.ranked:
                    reason = (
                        "runs diverged or came to NaN or infinity, and it is not known what is"
                        " worse"
                    )
                if reason:
                    refused.append(_no_verdict(case.verdict, reason))
                else:
                    cases.append(case)
        verdicts = [*_decide(cases, rules), *refused]
    keys = [(variant, measure) for variant in variants for measure in measures]
    order = {key: place for place, key in enumerate(keys)}
    return sorted(verdicts, key=lambda verdict: order[verdict.variant, verdict.measure])


@dataclass(frozen=True)
class _Case:
    """A comparison before it is known which others are made with it.

    The verdict lacks what depends on those.
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
    measured_by_both = all(any(observe(run, measure, better) for run in side) for side in sides)
    values_2N = pairs.values
    difference_N = differences(values_2N)
    scores_N = scores(values_2N)
    all_finite = bool(np.isfinite(values_2N).all())
    means = _mean(values_2N[0]), _mean(values_2N[1])
    no_mean = math.nan, math.nan
    baseline_mean, variant_mean = means if all_finite else no_mean
    survivors_baseline, survivors_variant = no_mean if all_finite else means
    if rules.anytime:
        statistic = Statistic.SIGNS
    else:
        statistic = Statistic.DIFFERENCES if all_finite else Statistic.RANKS
    diverged_baseline, diverged_variant = pairs.count(Kind.DIVERGED)
    infinite_baseline, infinite_variant = pairs.count(Kind.NOT_FINITE)
    unreached_baseline, unreached_variant = pairs.count(Kind.NOT_REACHED)
    early_baseline, early_variant = pairs.count(Kind.BEFORE_FIRST)
    verdict = Verdict(
        measure=measure,
        baseline=names[0],
        variant=names[1],
        pairs=len(pairs.ours),
        baseline_mean=baseline_mean,
        variant_mean=variant_mean,
        difference=_mean(difference_N) if all_finite else math.nan,
        low=math.nan,
        high=math.nan,
        p=rules.p(scores_N),
        corrected=math.nan,
        effect=permutation.effect(difference_N) if all_finite else math.nan,
        needed=0,
        words=Conclusion.NO_VERDICT,
        diverged_baseline=diverged_baseline,
        diverged_variant=diverged_variant,
        unreached_baseline=unreached_baseline,
        unreached_variant=unreached_variant,
        early_baseline=early_baseline,
        early_variant=early_variant,
        survivors_baseline=survivors_baseline,
        survivors_variant=survivors_variant,
        infinite_baseline=infinite_baseline,
        infinite_variant=infinite_variant,
        left_out=len(pairs.alone),
        several=len(pairs.again),
        test=statistic,
        role=rules.role(measure),
    )
    return _Case(verdict, pairs, better, scores_N, measured_by_both)


def _mean(values_N: NDArray[np.float64]) -> float:
    """Of those that are finite; nan where none is."""
    finite_N = values_N[np.isfinite(values_N)]
    return float(finite_N.mean()) if len(finite_N) else math.nan


def differences(values_2N: NDArray[np.float64]) -> NDArray[np.float64]:
    """Variant minus baseline; 0 where both are tied in the same place, infinite where only one has
    a number.
    """
    tied_N = values_2N[0] == values_2N[1]
    with np.errstate(invalid="ignore"):
        return np.where(tied_N, 0.0, values_2N[1] - values_2N[0])


def scores(values_2N: NDArray[np.float64]) -> NDArray[np.float64]:
    """The differences where every run has a number, otherwise their signed ranks.

    A difference of 0 is ranked and scores 0.
    """
    differences_N = differences(values_2N)
    if np.isfinite(values_2N).all():
        return differences_N
    return np.sign(differences_N) * stats.rankdata(np.abs(differences_N))


def _no_verdict(verdict: Verdict, reason: str) -> Verdict:
    return replace(
        verdict,
        words=Conclusion.NO_VERDICT,
        reason=reason,
        p=math.nan,
        difference=math.nan,
        effect=math.nan,
        compared=0,
    )


def _decide(cases: list[_Case], rules: Rules) -> list[Verdict]:
    """Holm's procedure over each family of comparisons that could show something."""
    verdicts: list[Verdict] = []
    for role in dict.fromkeys(case.verdict.role for case in cases):
        family = [case for case in cases if case.verdict.role == role]
        verdicts += _decide_family(family, rules)
    return verdicts


def _decide_family(cases: list[_Case], rules: Rules) -> list[Verdict]:
    able = [index for index, case in enumerate(cases) if case.verdict.pairs >= rules.least]
    by_p = sorted(able, key=lambda index: cases[index].verdict.p)
    corrected: dict[int, float] = {}
    levels: dict[int, float] = {}  # of the comparisons that show a difference
    largest = 0.0
    for rank, index in enumerate(by_p):
        remaining = len(by_p) - rank
        largest = max(largest, remaining * cases[index].verdict.p)
        corrected[index] = min(1.0, largest)
        is_next = len(levels) == rank
        if is_next and corrected[index] <= rules.alpha * permutation.ROUNDING:
            levels[index] = rules.alpha / remaining
    # the first that shows none was held to this level, and so are all that come after it
    level_of_rest = rules.alpha / max(1, len(by_p) - len(levels))
    # to this one, if those with too few pairs had enough
    level_of_few = rules.alpha / max(1, len(cases) - len(levels))
    verdicts = []
    for index, case in enumerate(cases):
        level = levels.get(index, level_of_rest if index in corrected else level_of_few)
        verdict = replace(
            case.verdict,
            corrected=corrected.get(index, case.verdict.p),
            compared=max(1, len(by_p)),
        )
        verdicts.append(_finish(replace(case, verdict=verdict), level, rules, index in levels))
    return verdicts


def _finish(case: _Case, level: float, rules: Rules, shows: bool) -> Verdict:
    """The verdict with its conclusion and interval at the level that was left to it."""
    low = high = math.nan
    if np.isfinite(case.pairs.values).all():
        low, high = rules.interval(case.scores, level)
    verdict = replace(case.verdict, level=level, low=low, high=high)
    if shows:
        conclusion = _conclusion(rules.sign(case.scores), case.better)
        if _stands(case, level, rules):
            return replace(verdict, words=conclusion)
        return replace(verdict, words=Conclusion.UNSETTLED, reason=conclusion)
    least = rules.least_at(level)
    if verdict.pairs < least:
        verdict = replace(verdict, words=Conclusion.TOO_FEW)
    else:
        could = "those left out could show one" if any(_filled(case, level, rules)) else ""
        verdict = replace(verdict, words=Conclusion.NO_DIFFERENCE, reason=could)
    if rules.anytime:
        return replace(verdict, needed=max(1, least - verdict.pairs))
    return _with_needed(verdict, case.scores, level)


def _with_needed(verdict: Verdict, scores_N: NDArray[np.float64], level: float) -> Verdict:
    """The verdict with how many more pairs it takes, and what these could have shown."""
    sigma = math.nan
    if verdict.test == Statistic.DIFFERENCES and verdict.pairs > 1:
        sigma = float(scores_N.std(ddof=1))
    uncorrected = math.nan
    if verdict.pairs > 2:
        uncorrected = verdict.effect / permutation.hedges_factor(verdict.pairs - 1)
    low, high = permutation.enough_range(uncorrected, verdict.pairs, level)
    return replace(
        verdict,
        needed=_more(permutation.enough(verdict.effect, level), verdict.pairs),
        needed_low=_more(low, verdict.pairs),
        needed_high=_more(high, verdict.pairs),
        detectable=permutation.smallest(verdict.pairs, level) * sigma,
    )


def _more(enough: int, pairs: int) -> int:
    """How many more pairs than there are; 0 stands for what is not known."""
    return enough if enough in (0, permutation.MOST_NEEDED) else max(1, enough - pairs)


def _conclusion(sign: int, better: int) -> Conclusion:
    if not better:
        return Conclusion.HIGHER if sign > 0 else Conclusion.LOWER
    return Conclusion.BETTER if sign == better else Conclusion.WORSE


def _stands(case: _Case, level: float, rules: Rules) -> bool:
    """Whether what the pairs show holds whichever side the filled-in values favour."""
    sign = rules.sign(case.scores)
    return all(filled == sign for filled in _filled(case, level, rules))


def _filled(case: _Case, level: float, rules: Rules) -> list[int]:
    """What would be shown if what was left out favoured the variant, and if the baseline.

    1 is higher, -1 lower, 0 nothing. Empty where nothing was left out.
    """
    if not case.pairs.alone and not case.pairs.again:
        return []
    signs = []
    for favours_variant in (True, False):
        filled_M = scores(case.pairs.filled(case.better, favours_variant))
        shows = rules.p(filled_M) <= level * permutation.ROUNDING
        signs.append(rules.sign(filled_M) if shows else 0)
    return signs
