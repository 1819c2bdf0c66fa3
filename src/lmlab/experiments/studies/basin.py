"""How much room a learning rate leaves: the width of the interval of rates that do nearly as well
as the best.

A method with a wide basin is easily tuned; one that wins by little at one rate and loses beside it
may not be better at all (after Wortsman et al. 2024, who measure how much a loss depends on the
rate).
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Basin:
    """The rates around the best of a sweep whose loss is within a tolerance of the best loss."""

    best: float
    low: float
    high: float
    open_below: bool
    """Whether the sweep ends before the loss rises: the basin may go on below `low`."""
    open_above: bool

    @property
    def octaves(self) -> float:
        """Its width in doublings of the rate."""
        return math.log2(self.high / self.low)

    @property
    def lower_bound(self) -> bool:
        """Whether the width is only known to be no less than that."""
        return self.open_below or self.open_above


def basin(rates: Sequence[float], losses: Sequence[float], tolerance: float) -> Basin:
    """The interval around the rate of least loss where the loss is at most `tolerance` higher.

    Between two rates of the sweep the loss is taken to follow a straight line over the rate's
    logarithm. A loss that is NaN or infinite (a run that diverged) ends the basin at the last
    rate before it, the least that it can be. Only rates that hang together with the best count.
    Several losses of one rate (seeds) are to be averaged before. Raises ValueError for no rates,
    rates that are not positive or repeat, or no finite loss.
    """
    sweep = np.array(sorted(zip(rates, losses, strict=True)), dtype=np.float64).reshape(-1, 2)
    at, loss = sweep[:, 0], sweep[:, 1]
    if not len(at) or at[0] <= 0 or (np.diff(at) == 0).any():
        raise ValueError("a basin needs different positive rates, each with its loss")
    loss = np.where(np.isfinite(loss), loss, math.inf)
    best = int(loss.argmin())
    if math.isinf(loss[best]):
        raise ValueError("no rate of the sweep has a finite loss")
    logs = np.log(at)
    above, open_above = _edge(logs[best:], loss[best:], loss[best] + tolerance)
    below, open_below = _edge(-logs[best::-1], loss[best::-1], loss[best] + tolerance)
    return Basin(float(at[best]), math.exp(-below), math.exp(above), open_below, open_above)


def _edge(place: Floats, loss: Floats, limit: float) -> tuple[float, bool]:
    """Where the loss first crosses the limit, going on from the first place; and whether it never
    does.
    """
    for number in range(1, len(place)):
        if loss[number] > limit:
            if math.isinf(loss[number]):
                return float(place[number - 1]), False
            share = (limit - loss[number - 1]) / (loss[number] - loss[number - 1])
            return float(place[number - 1] + share * (place[number] - place[number - 1])), False
    return float(place[-1]), True
