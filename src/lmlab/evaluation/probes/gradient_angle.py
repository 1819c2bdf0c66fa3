"""The angle between the rule's gradient and the true one, by its cosine (Lillicrap et al. 2016).

cos = g · h / (‖g‖ ‖h‖), by parameter and over all of them.
"""

from collections.abc import Iterator

from torch import Tensor

from lmlab.core.params import Params
from lmlab.evaluation.probes.base import (
    Batch,
    Probe,
    Reading,
    Snapshot,
    Vectors,
    each_and_all,
    flat,
)


class Options(Params):
    """This probe has none."""


class GradientAngle(Probe):
    """Cosine 1: the same direction; 0: unrelated, as for a random one; below 0: uphill.

    `rule` is the cosine between the gradients of the rule and of backprop, both on the probe batch.
    `update` is the cosine between the update the run made in this step (on its own batch, after
    clipping and the optimizer) and the downhill direction. If either vector is zero, so is the
    cosine.
    """

    reading = (
        "Cosine of the rule's gradient, and of the update, with backprop's gradient: 1 is the same"
        " direction, about 0 an unrelated one, below 0 uphill. The rule backprop reads 1; an update"
        " reads about 0.2 at first and under 0.05 later, since its batch is another."
    )

    def __init__(self, options: Options) -> None:
        super().__init__()

    def look(self, snapshot: Snapshot, batch: Batch) -> Iterator[Reading]:
        true_gradient = snapshot.true_gradient(batch)
        rule_gradient = snapshot.rule_gradient(batch)
        for where, gradient in each_and_all(true_gradient):
            downhill = -flat(gradient)
            rule_step = -_selected(rule_gradient, gradient)
            update = _selected(snapshot.update, gradient)
            yield Reading("rule", where, cosine(rule_step, downhill))
            yield Reading("update", where, cosine(update, downhill))


def _selected(vectors: Vectors, like: Vectors) -> Tensor:
    """The vectors of the parameters in `like` as one."""
    return flat({name: vectors[name] for name in like})


def cosine(x: Tensor, y: Tensor) -> float:
    """The cosine of the angle between two vectors; 0 if either is zero."""
    norms = x.norm() * y.norm()
    return float(x @ y / norms) if norms else 0.0
