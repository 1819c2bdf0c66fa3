"""How fast a run learned: tokens and operations it took to given losses on validation, and the mean over its course."""

from itertools import pairwise
from math import exp, log

from pydantic import Field

from lmlab.measures.base import DoesNotApply, Measure, Numbers, Trained
from lmlab.params import Params
from lmlab.sizing import training_operations


class Options(Params):
    """Options of the measure."""

    targets: list[float] = Field(min_length=1)


class LearningCurve(Measure):
    """From the validation losses of the training log, whose windows do not overlap, in bits per byte.

    `tokens_to` and `operations_to` have an entry for each target that was reached, by a straight line over the logarithm
    of tokens between two validations; one that the first validation was already below is left out, since when that was is
    not known (a smaller `train.validate_every` tells). `mean` is the area under the curve over that axis, from the first
    validation to the last, divided by its length: it compares runs that validate at the same steps. Operations are those
    of backpropagation, whatever rule the run learned by. Seconds differ from run to run, so they stand in
    data/timing/train.json and not here.
    """

    def __init__(self, options: Options) -> None:
        self.targets = options.targets

    def measure(self, trained: Trained) -> Numbers:
        rows = [row for row in trained.log if "validation_bits_per_byte" in row]
        if not rows or "size" not in trained.saved:
            raise DoesNotApply("the training log has no validation, or model.json no size")
        tokens = [float(row["tokens"]) for row in rows]
        bits = [float(row["validation_bits_per_byte"]) for row in rows]
        forward = trained.saved["size"]["forward_operations_per_token"]
        crossings = {str(target): reached(tokens, bits, target) for target in self.targets if target < bits[0]}
        tokens_to = {target: count for target, count in crossings.items() if count is not None}
        numbers: Numbers = {
            "tokens": tokens[-1],
            "operations": training_operations(forward, tokens[-1]),
            "tokens_to": tokens_to,
            "operations_to": {target: training_operations(forward, count) for target, count in tokens_to.items()},
        }
        if len(rows) > 1:
            numbers["mean"] = mean_over_logarithm(tokens, bits)
        return numbers


def reached(amounts: list[float], losses: list[float], target: float) -> float | None:
    """How much (tokens, operations, seconds: `amounts`, ascending) it took until the loss was `target` for the first time.

    Between two amounts the loss is taken to follow a straight line over the logarithm of the amount, or over the amount
    itself where the earlier one is 0. The first amount if the loss is no higher there already, None if it never is.
    """
    if losses and losses[0] <= target:
        return amounts[0]
    for (before, high), (after, low) in pairwise(zip(amounts, losses, strict=True)):
        if low <= target < high:
            share = (high - target) / (high - low)
            if before <= 0:
                return before + share * (after - before)
            return exp(log(before) + share * (log(after) - log(before)))
    return None


def mean_over_logarithm(amounts: list[float], losses: list[float]) -> float:
    """The mean loss over the logarithm of the amount, by trapezoids; at least two positive, ascending amounts."""
    steps = list(pairwise(zip(map(log, amounts), losses, strict=True)))
    area = sum((later - earlier) * (first + second) / 2 for (earlier, first), (later, second) in steps)
    return area / (steps[-1][1][0] - steps[0][0][0])
