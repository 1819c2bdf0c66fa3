"""One verdict: its numbers, and the sentence that a person would say."""

import math
from dataclasses import dataclass
from enum import StrEnum

from lmlab.experiments.compare.permutation import MOST_NEEDED


class Conclusion(StrEnum):
    """What the runs of a variant show."""

    BETTER = "better"
    WORSE = "worse"
    HIGHER = "higher"
    """Where it is not known which direction is better, as with LOWER."""
    LOWER = "lower"
    NO_DIFFERENCE = "no difference shown"
    TOO_FEW = "too few seeds"
    UNSETTLED = "unsettled"
    """Runs that were left out could turn what the pairs show."""
    NO_VERDICT = "no verdict"
    """The numbers do not compare."""


SHOWN = (Conclusion.BETTER, Conclusion.WORSE, Conclusion.LOWER, Conclusion.HIGHER)


class Statistic(StrEnum):
    """What was tested."""

    DIFFERENCES = "differences"
    RANKS = "ranks"
    """Signed ranks of the differences, where a run has no number."""
    SIGNS = "signs"
    """By the test that may be looked at any time (`anytime`)."""


class Role(StrEnum):
    """Which family of comparisons a measure belongs to."""

    PRIMARY = "primary"
    SECONDARY = "secondary"
    NONE = ""
    """No measure was declared to be the primary one."""


@dataclass(frozen=True)
class Verdict:
    """What the runs of one variant show against those of a baseline, in one measure."""

    measure: str
    """A dotted key of Run.measures."""
    baseline: str
    variant: str
    pairs: int
    """Seeds with an observation on both sides."""
    baseline_mean: float
    """Over the pairs, as is the variant's; nan where any run of the pairs has no number."""
    variant_mean: float
    difference: float
    """Mean over pairs of variant minus baseline; nan where any run of the pairs has no number."""
    low: float
    high: float
    """The interval of the difference that the test does not reject; nan where there are too few
    pairs, or no numbers. Of the test that may be looked at any time: of the median of the pairs'
    differences.
    """
    p: float
    """Two-sided, of `test`."""
    corrected: float
    """The same, corrected for the number of comparisons made at once."""
    effect: float
    """Difference in standard deviations of the paired differences (Cohen's d_z), with Hedges'
    correction for few pairs.
    """
    needed: int
    """About how many more pairs would show a difference of this size; 0 where none are needed."""
    words: Conclusion
    detectable: float = math.nan
    """The difference that so many pairs would have shown with probability `permutation.POWER`; nan
    where they could show none.
    """
    level: float = math.nan
    """One minus the interval's confidence: what Holm's procedure left to this comparison."""
    compared: int = 1
    """Comparisons that it was corrected for."""
    diverged_baseline: int = 0
    """Pairs in which the baseline's run diverged."""
    diverged_variant: int = 0
    unreached_baseline: int = 0
    """Pairs in which the baseline's run never reached the target."""
    unreached_variant: int = 0
    early_baseline: int = 0
    """Pairs in which the baseline's first validation was already below the target."""
    early_variant: int = 0
    survivors_baseline: float = math.nan
    """Mean over those of the baseline's runs in the pairs that have a number, where some do not: a
    mean of survivors, and no fair one.
    """
    survivors_variant: float = math.nan
    infinite_baseline: int = 0
    """Pairs in which the baseline's run ended and its number is NaN or infinite."""
    infinite_variant: int = 0
    left_out: int = 0
    """Seeds that make no pair: only one side ran, measured or finished them."""
    several: int = 0
    """Pairs of which a side has several runs with the same seeds and params and other results."""
    needed_low: int = 0
    needed_high: int = 0
    """The range of `needed`, which holds the true number with probability `permutation.SURE`; 0 and
    0 where it cannot be given.
    """
    test: Statistic = Statistic.DIFFERENCES
    role: Role = Role.NONE
    reason: str = ""
    """Why there is no verdict; what the pairs alone would show where it is unsettled; or that runs
    that were left out could show a difference where the pairs do not.
    """

    @property
    def judged(self) -> bool:
        """Whether there is a verdict at all."""
        return self.words != Conclusion.NO_VERDICT

    @property
    def sentence(self) -> str:
        """The verdict as a person would say it."""
        if not self.judged:
            return f"{self.words}: {self.reason}"
        parts = [self.words + self._detail(), *self._without_numbers()]
        if self.left_out and self.words != Conclusion.UNSETTLED:
            could_show_one = self.words == Conclusion.NO_DIFFERENCE and self.reason
            remark = ", which could have shown one" if could_show_one else ""
            parts.append(f"{self.left_out} left out{remark}")
        return "; ".join(parts)

    def _detail(self) -> str:
        """What belongs in brackets behind the conclusion."""
        match self.words:
            case Conclusion.UNSETTLED:
                return f" ({self._why_unsettled()})"
            case Conclusion.TOO_FEW:
                return f" ({self._more_seeds()})"
            case Conclusion.NO_DIFFERENCE:
                detail = self._why_no_difference()
                return f" ({detail})" if detail else ""
            case _:
                return ""

    def _why_unsettled(self) -> str:
        conditions = []
        if self.left_out:
            conditions.append(f"the {self.left_out} left out had the best or the worst value seen")
        if self.several:
            conditions.append(f"of the {self.several} with several results others counted")
        return f"{self.reason} in the {self.pairs} pairs, but not if {' and '.join(conditions)}"

    def _why_no_difference(self) -> str:
        if self.detectable > 0:
            return f"one of {self.detectable:.2g} would probably have been"
        if self.pairs and self.diverged_baseline == self.diverged_variant == self.pairs:
            return "all runs diverged"
        if self.pairs and self.infinite_baseline == self.infinite_variant == self.pairs:
            return "all runs came to NaN or infinity"
        if self.pairs and self.unreached_baseline == self.unreached_variant == self.pairs:
            return "no run reached it"
        if self.detectable == 0:
            return "all pairs are equal"
        is_of_numbers = self.test == Statistic.DIFFERENCES
        return "only a very large one could have been" if is_of_numbers else ""

    def _more_seeds(self) -> str:
        low, high = self.needed_low or self.needed, self.needed_high or self.needed
        if low >= MOST_NEEDED:
            return f"{MOST_NEEDED:,} or more would be needed"
        if high >= MOST_NEEDED:
            return f"at least about {low:,} more would be needed, and perhaps very many"
        if not self.needed_high:
            return f"at least about {low:,} more would be needed"
        up_to = f" to {high:,}" if high > low else ""
        return f"about {low:,}{up_to} more would be needed"

    def _without_numbers(self) -> list[str]:
        """How many of the pairs' runs have no number, and why."""
        counts = (
            ("diverged", self.diverged_baseline, self.diverged_variant),
            ("came to NaN or infinity", self.infinite_baseline, self.infinite_variant),
            ("never reached it", self.unreached_baseline, self.unreached_variant),
            ("were there by the first validation", self.early_baseline, self.early_variant),
        )
        parts = []
        for ending, of_baseline, of_variant in counts:
            for side, count in (("baseline", of_baseline), ("variant", of_variant)):
                if count:
                    parts.append(f"{count} of {self.pairs} of the {side} {ending}")
        return parts
