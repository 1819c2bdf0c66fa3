"""How large an update is beside the weights it changes (Karpathy 2015: about 0.001 is healthy)."""

from collections.abc import Iterator

from lmlab.core.params import Params
from lmlab.evaluation.probes.base import Batch, Probe, Reading, Snapshot, each_and_all, flat


class Options(Params):
    """This probe has none."""


class UpdateRatio(Probe):
    """Norm of the update that the step made over norm of the weights before it; none for weights
    that are still zero.
    """

    def __init__(self, options: Options) -> None:
        super().__init__()

    def look(self, snapshot: Snapshot, batch: Batch) -> Iterator[Reading]:
        for where, weights in each_and_all(snapshot.weights):
            length = float(flat(weights).norm())
            if length:
                update = flat({name: snapshot.update[name] for name in weights})
                yield Reading("ratio", where, float(update.norm()) / length)
