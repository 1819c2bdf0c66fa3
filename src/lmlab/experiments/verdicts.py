"""Whether one way of learning is better than another: paired by seed, with intervals, corrected for how many were compared."""

from dataclasses import dataclass


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
    """Difference in standard deviations of the paired differences."""
    needed: int
    """About how many more pairs would show a difference of this size; 0 where none are needed."""
    words: str
    """better, worse, no difference shown, or too few seeds."""
