"""The size of an update relative to the weights it changes (Karpathy 2015: about 0.001 is healthy).

ratio = ‖Δw‖ / ‖w‖, by parameter and over all of them.
"""

from collections.abc import Iterator

from lmlab.core.params import Params
from lmlab.evaluation.probes.base import Batch, Probe, Reading, Snapshot, each_and_all, flat


class Options(Params):
    """This probe has none."""


class UpdateRatio(Probe):
    """Norm of the step's update over norm of the weights before it; none for weights still zero."""

    reading = (
        "Size of a step's update relative to the weights: 0.001 to 0.01 is usual at the peak"
        " learning rate, and it falls with the learning rate. Far above that, training may be"
        " unstable; far below, a parameter hardly learns."
    )

    def __init__(self, options: Options) -> None:
        super().__init__()

    def look(self, snapshot: Snapshot, batch: Batch) -> Iterator[Reading]:
        for where, weights in each_and_all(snapshot.weights):
            weight_norm = float(flat(weights).norm())
            if weight_norm:
                update = flat({name: snapshot.update[name] for name in weights})
                yield Reading("ratio", where, float(update.norm()) / weight_norm)
