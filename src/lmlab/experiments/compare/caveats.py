"""What the verdicts of a comparison promise and what they do not, in words."""

import math
from collections.abc import Iterator, Sequence

from lmlab.experiments.compare.comparing import Comparison
from lmlab.experiments.compare.run import SEEDS
from lmlab.experiments.compare.verdict import Conclusion, Role, Statistic, Verdict
from lmlab.experiments.wording import quantity


def lines(comparison: Comparison) -> list[str]:
    """What concerns the verdicts of this comparison, a line each."""
    judged = [verdict for verdict in comparison.verdicts if verdict.judged]
    caveats = [_method(comparison, judged)] if judged else []
    caveats += _on_runs_without_numbers(judged)
    if any(not math.isnan(verdict.low) for verdict in judged):
        caveats.append(
            "each interval holds by itself: four at once all held in 0.89 of cases; and where"
            " differences are skewed over seeds, 95 % intervals held in 0.84 to 0.93"
        )
    caveats.append("only seeds vary here: another text would move levels and differences as well")
    if any(verdict.words == Conclusion.TOO_FEW for verdict in judged):
        caveats.append(
            f"one comparison alone takes at least {comparison.rules.least} pairs to show anything"
            f" at {comparison.alpha:g}, several at once (variants, measures) take more; --measure"
            " names those that matter to you"
        )
    return [*caveats, *_on_looks(comparison)]


def _on_runs_without_numbers(judged: Sequence[Verdict]) -> Iterator[str]:
    if any(verdict.test == Statistic.RANKS for verdict in judged):
        yield (
            "where a run diverged or never reached a target, pairs are judged by ranks, such runs"
            " tied in the last place (those that were there by the first validation in the"
            " first), and there is no mean, interval or effect"
        )
    if any(
        verdict.test == Statistic.SIGNS and math.isnan(verdict.difference) for verdict in judged
    ):
        yield (
            "a run that diverged or never reached a target is worse than any that has a number"
            " (one that was there by the first validation, better), and where there is one there"
            " is no mean, interval or effect"
        )
    means_of_survivors = [
        mean
        for verdict in judged
        for mean in (verdict.survivors_baseline, verdict.survivors_variant)
    ]
    if not all(map(math.isnan, means_of_survivors)):
        yield "* is the mean of those runs alone that have a number"


def _method(comparison: Comparison, judged: Sequence[Verdict]) -> str:
    rules = comparison.rules
    test = "flipping signs of differences"
    if rules.anytime:
        test = "betting on signs, valid whenever you look; intervals are of the median difference"
    intervals = ""
    if any(not math.isnan(verdict.low) for verdict in judged):
        intervals = f"intervals of at least {100 * (1 - rules.alpha):g} % and "
    method = f"paired by {' and '.join(SEEDS)}; {intervals}p by {test}"
    families = {
        Role.PRIMARY: "the primary measure ",
        Role.SECONDARY: "the secondary ones, among themselves, ",
        Role.NONE: "",
    }
    for role in dict.fromkeys(verdict.role for verdict in judged):
        compared = max(verdict.compared for verdict in judged if verdict.role == role)
        if compared > 1:
            method += f", {families[role]}corrected for {compared} comparisons (Holm)"
    if rules.primary and any(verdict.role == Role.SECONDARY for verdict in judged):
        method += f"; {rules.primary} is primary, and judged as if alone"
    return method


def _on_looks(comparison: Comparison) -> Iterator[str]:
    if comparison.rules.anytime:
        return
    instead = (
        "--anytime holds however often you look; for K looks planned before, --alpha"
        f" {comparison.alpha:g}/K does"
    )
    if not comparison.looked:
        yield f"the error promised is for one look: {instead}"
        return
    most = max(comparison.looked.values())
    yield (
        f"LOOKED AT BEFORE with other seeds ({quantity(most, 'time')}): whoever looks again"
        " after each seed tells equal variants apart by the twentieth seed in 17 % of cases and"
        f" not in 5 %; {instead}"
    )
