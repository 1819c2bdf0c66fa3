"""The length of the gradient, by parameter and in all: where the rule's signal grows or fades
(Hochreiter 1991).
"""

from collections.abc import Iterator

from lmlab.core.params import Params
from lmlab.evaluation.probes.base import Batch, Probe, Reading, Snapshot, each_and_all, flat


class Options(Params):
    """This probe has none."""


class GradientNorm(Probe):
    """Euclidean norms on the probe batch: `rule` of the gradient that the run's rule gives,
    `backprop` of the true one.
    """

    def __init__(self, options: Options) -> None:
        super().__init__()

    def look(self, snapshot: Snapshot, batch: Batch) -> Iterator[Reading]:
        for measure, vectors in (
            ("rule", snapshot.rule_gradient(batch)),
            ("backprop", snapshot.true_gradient(batch)),
        ):
            for where, gradient in each_and_all(vectors):
                yield Reading(measure, where, float(flat(gradient).norm()))
