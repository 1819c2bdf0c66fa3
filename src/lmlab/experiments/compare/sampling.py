"""How much a loss, or a difference of two, owes to which text it was measured on: the standard
error over blocks of text.

Seeds say how a result would vary if it were trained again, and nothing about another text of the
same kind. That is told by the losses of many equal blocks of the validation split, taken to be
independent: the standard error of a ratio of two sums (nats over bytes), with a block for a cluster
(Cochran 1977, "Sampling Techniques", chapter 6). A difference of two models is taken block by
block, so what makes a block hard for both falls out; it is far surer than either level.
"""

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from lmlab.experiments.compare.run import BLOCKS, Run

MEASURE = "validation.bits_per_byte"
"""What the blocks add up to."""
FEW = 10
"""Blocks: from fewer no standard error is told."""


def of_level(runs: Sequence[Run]) -> float:
    """The standard error of the runs' mean bits per byte over the validation split; nan where their
    blocks are not known.
    """
    nats = _mean_nats(runs)
    return math.nan if nats is None else _standard_error(*nats)


def of_difference(pairs: Sequence[tuple[Run, Run]]) -> float:
    """The same of the mean difference of pairs of a baseline's and a variant's run, by the pairs
    that both have blocks.
    """
    whole = [
        (ours, theirs)
        for ours, theirs in pairs
        if BLOCKS in ours.curves and BLOCKS in theirs.curves
    ]
    ours, theirs = _mean_nats([one for one, _ in whole]), _mean_nats([other for _, other in whole])
    if ours is None or theirs is None or len(ours[0]) != len(theirs[0]):
        return math.nan
    (our_bytes_B, our_nats_B), (their_bytes_B, their_nats_B) = ours, theirs
    # of what the tokens of a block cost beyond or below the average, at the bytes that each
    # tokenizer has in it
    ours_B = _beyond(our_bytes_B, our_nats_B)
    theirs_B = _beyond(their_bytes_B, their_nats_B)
    return _error(theirs_B / their_bytes_B.sum() - ours_B / our_bytes_B.sum())


def _mean_nats(runs: Sequence[Run]) -> tuple[NDArray[np.float64], NDArray[np.float64]] | None:
    """Bytes and nats of each block, means over runs; None where a run lacks them or has other
    blocks, or they are few.
    """
    tables = [run.curves[BLOCKS] for run in runs if BLOCKS in run.curves]
    if (
        not tables
        or len(tables) < len(runs)
        or len({len(table) for table in tables}) > 1
        or len(tables[0]) < FEW
    ):
        return None
    if any(not {"bytes", "nats"} <= set(table.columns) for table in tables):
        return None
    bytes_RB, nats_RB = (
        np.stack([table[column].to_numpy(np.float64) for table in tables])
        for column in ("bytes", "nats")
    )
    return (
        (bytes_RB.mean(0), nats_RB.mean(0))
        if bytes_RB.sum() > 0 and np.isfinite(nats_RB).all()
        else None
    )


def _beyond(bytes_B: NDArray[np.float64], nats_B: NDArray[np.float64]) -> NDArray[np.float64]:
    """Nats of each block above what it would cost at the mean of all."""
    return nats_B - bytes_B * nats_B.sum() / bytes_B.sum()


def _standard_error(bytes_B: NDArray[np.float64], nats_B: NDArray[np.float64]) -> float:
    return _error(_beyond(bytes_B, nats_B) / bytes_B.sum())


def _error(shares_B: NDArray[np.float64]) -> float:
    """The standard error, in bits, of a sum of independent shares in nats whose mean is 0."""
    count = len(shares_B)
    return math.sqrt(count / (count - 1) * float((shares_B**2).sum())) / math.log(2)
