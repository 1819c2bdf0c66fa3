"""How much a loss, or a difference of two, owes to the text it was measured on: the standard error
over blocks of text.

Seeds say how a result would vary if it were trained again, and nothing about another text of the
same kind. The losses of many equal blocks of the validation split, taken to be independent, say
that: they give the standard error of a ratio of two sums (nats over bytes), with a block for a
cluster (Cochran 1977, "Sampling Techniques", chapter 6). A difference of two models is taken block
by block, so what makes a block hard for both cancels; it is far surer than either level.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from lmlab.experiments.compare.run import BLOCKS, Run

MEASURE = "validation.bits_per_byte"
"""What the blocks add up to."""
FEWEST = 10
"""Blocks: fewer give no standard error."""


@dataclass(frozen=True)
class Sampling:
    """What a variant's validation loss owes to the text it was measured on, in bits per byte."""

    difference: float
    """The standard error of the mean difference from the baseline over blocks of text."""
    level: float
    """The same of the variant's own mean."""

    @property
    def sentence(self) -> str:
        """In words."""
        return (
            f"of {MEASURE} over blocks of the text: {self.difference:.2g} of the difference,"
            f" {self.level:.2g} of the level"
        )


@dataclass(frozen=True)
class _Blocks:
    """The size and the loss of each block of text, shape (B,) each."""

    bytes: NDArray[np.float64]
    nats: NDArray[np.float64]

    def shares(self) -> NDArray[np.float64]:
        """What each block adds to the loss in nats per byte, beyond a block of average loss."""
        at_average_B = self.bytes * self.nats.sum() / self.bytes.sum()
        return (self.nats - at_average_B) / self.bytes.sum()


def sample(pairs: Sequence[tuple[Run, Run]]) -> Sampling | None:
    """Of pairs of a baseline's and a variant's run; None where their blocks are not known."""
    difference = of_difference(pairs)
    if not math.isfinite(difference):
        return None
    return Sampling(difference, of_level([theirs for _, theirs in pairs]))


def of_level(runs: Sequence[Run]) -> float:
    """The standard error of the runs' mean bits per byte over the validation split.

    nan where their blocks are not known.
    """
    blocks = _mean_blocks(runs)
    return _error(blocks.shares()) if blocks else math.nan


def of_difference(pairs: Sequence[tuple[Run, Run]]) -> float:
    """The same of the mean difference of pairs of a baseline's and a variant's run.

    Only pairs in which both have blocks count.
    """
    whole = [pair for pair in pairs if all(BLOCKS in run.curves for run in pair)]
    ours = _mean_blocks([our_run for our_run, _ in whole])
    theirs = _mean_blocks([their_run for _, their_run in whole])
    if ours is None or theirs is None or len(ours.nats) != len(theirs.nats):
        return math.nan
    return _error(theirs.shares() - ours.shares())


def _mean_blocks(runs: Sequence[Run]) -> _Blocks | None:
    """Means over runs; None where a run lacks blocks or has other ones, or they are few."""
    tables = [run.curves[BLOCKS] for run in runs if BLOCKS in run.curves]
    if not tables or len(tables) < len(runs):
        return None
    if len(tables[0]) < FEWEST or any(len(table) != len(tables[0]) for table in tables):
        return None
    if any(not {"bytes", "nats"} <= set(table.columns) for table in tables):
        return None
    bytes_RB = np.stack([table["bytes"].to_numpy(np.float64) for table in tables])
    nats_RB = np.stack([table["nats"].to_numpy(np.float64) for table in tables])
    if not bytes_RB.sum() > 0 or not np.isfinite(nats_RB).all():
        return None
    return _Blocks(bytes_RB.mean(0), nats_RB.mean(0))


def _error(shares_B: NDArray[np.float64]) -> float:
    """The standard error, in bits, of a sum of independent shares in nats whose mean is 0."""
    count = len(shares_B)
    variance = count / (count - 1) * float((shares_B**2).sum())
    return math.sqrt(variance) / math.log(2)
