"""The gradient's length by parameter: where the rule's signal grows or vanishes (Hochreiter 1991).

‖g‖ = √Σ gᵢ², over a parameter's entries or all.
"""

from collections.abc import Iterator

from lmlab.core.params import Params
from lmlab.evaluation.probes.base import Batch, Probe, Reading, Snapshot, each_and_all, flat


class Options(Params):
    """This probe has none."""


class GradientNorm(Probe):
    """Euclidean norms of the rule's gradient and of the true one, `backprop`, on the probe batch.

    Both are given by parameter and over all of them.
    """

    reading = (
        "Length of the gradient, by the run's rule and by backprop: over all parameters usually"
        " 1 to 10 at the start and below 1 later. Values that fall or rise many times over from"
        " block to block show vanishing or exploding gradients."
    )

    def __init__(self, options: Options) -> None:
        super().__init__()

    def look(self, snapshot: Snapshot, batch: Batch) -> Iterator[Reading]:
        gradients = {
            "rule": snapshot.rule_gradient(batch),
            "backprop": snapshot.true_gradient(batch),
        }
        for measure, vectors in gradients.items():
            for where, gradient in each_and_all(vectors):
                yield Reading(measure, where, float(flat(gradient).norm()))
