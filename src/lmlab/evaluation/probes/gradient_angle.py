"""The angle between what the rule teaches and the true gradient, by its cosine (Lillicrap et al.
2016).
"""

from collections.abc import Iterator

from torch import Tensor

from lmlab.core.params import Params
from lmlab.evaluation.probes.base import Batch, Probe, Reading, Snapshot, each_and_all, flat


class Options(Params):
    """This probe has none."""


class GradientAngle(Probe):
    """Cosine 1: the same direction; 0: none of it, as for a random one; below 0: uphill.

    `rule` is the cosine of the rule's gradient with backprop's, both on the probe batch. `update`
    is that of the update the run made in this step (on a batch of its own, as clipping and the
    optimizer left it) with the way downhill. Where one of the two is zero, so is the cosine.
    """

    def __init__(self, options: Options) -> None:
        super().__init__()

    def look(self, snapshot: Snapshot, batch: Batch) -> Iterator[Reading]:
        true, rules, update = (
            snapshot.true_gradient(batch),
            snapshot.rule_gradient(batch),
            snapshot.update,
        )
        for where, gradient in each_and_all(true):
            downhill = -flat(gradient)
            yield Reading(
                "rule", where, cosine(-flat({name: rules[name] for name in gradient}), downhill)
            )
            yield Reading(
                "update", where, cosine(flat({name: update[name] for name in gradient}), downhill)
            )


def cosine(one: Tensor, other: Tensor) -> float:
    """Of the angle between two vectors; 0 if either is zero."""
    lengths = one.norm() * other.norm()
    return float(one @ other / lengths) if lengths else 0.0
