"""How fast a run learned: tokens and FLOPs it took to given losses on validation, and the mean over
its course.
"""

from itertools import pairwise
from math import exp, log
from typing import ClassVar

from pydantic import Field

from lmlab.core.params import Params
from lmlab.evaluation.about import VALIDATED_AT
from lmlab.evaluation.measures.base import DoesNotApply, Measure, Numbers, Trained
from lmlab.training.cost import training_flops


class Options(Params):
    """Options of the measure."""

    targets: list[float] = Field(min_length=1)


class LearningCurve(Measure):
    """From the validation losses of the training log, whose windows do not overlap, in bits per
    byte.

    `tokens_to` and `flops_to` have an entry for each target that was reached between two
    validations, by a straight line over the logarithm of tokens. When it was is not known of a
    target that the first validation was already below: it stands, with the amount until then, in
    `tokens_to_at_most` (a smaller `train.validate_every` tells more); nor of one that was never
    reached, which stands with all that the run took in `tokens_to_more_than`; and so for FLOPs.
    `mean` is the area under the curve over that axis, from the first validation to the last,
    divided by its length: it compares runs that validate at the same steps. Operations are those of
    backpropagation, whatever rule the run learned by. Seconds differ from run to run, so they stand
    in data/timing/train.json and not here.
    """

    less_is_better = ("tokens_to.*", "flops_to.*", "mean")
    across_tokenizers = ("mean", "flops", "flops_to*")
    facts = ("tokens", "flops", "*_to_at_most.*", "*_to_more_than.*")
    decided_by: ClassVar = {"*": ("train.validate_every",), "mean": (VALIDATED_AT,)}
    not_deciding = ("targets",)

    def __init__(self, options: Options) -> None:
        self.targets = options.targets

    def measure(self, trained: Trained) -> Numbers:
        rows = [row for row in trained.log if "validation_bits_per_byte" in row]
        if not rows:
            raise DoesNotApply("the training log has no validation")
        tokens = [float(row["tokens"]) for row in rows]
        bits = [float(row["validation_bits_per_byte"]) for row in rows]
        forward = trained.saved.forward_flops_per_token
        crossings = {
            str(target): reached(tokens, bits, target)
            for target in self.targets
            if target < bits[0]
        }
        counts = {
            "to": {target: count for target, count in crossings.items() if count is not None},
            "to_at_most": {str(target): tokens[0] for target in self.targets if target >= bits[0]},
            "to_more_than": {
                target: tokens[-1] for target, count in crossings.items() if count is None
            },
        }
        numbers: Numbers = {"tokens": tokens[-1], "flops": training_flops(forward, tokens[-1])}
        for known, of_targets in counts.items():
            numbers[f"tokens_{known}"] = of_targets
            numbers[f"flops_{known}"] = {
                target: training_flops(forward, count) for target, count in of_targets.items()
            }
        if len(rows) > 1:
            numbers["mean"] = mean_over_logarithm(tokens, bits)
        return numbers


def reached(amounts: list[float], losses: list[float], target: float) -> float | None:
    """How much (tokens, FLOPs, seconds: `amounts`, ascending) it took until the loss was `target`
    for the first time.

    Between two amounts the loss is taken to follow a straight line over the logarithm of the
    amount, or over the amount itself where the earlier one is 0. The first amount if the loss is no
    higher there already, None if it never is.
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
    """The mean loss over the logarithm of the amount, by trapezoids; at least two positive,
    ascending amounts.
    """
    steps = list(pairwise(zip(map(log, amounts), losses, strict=True)))
    area = sum(
        (later - earlier) * (first + second) / 2 for (earlier, first), (later, second) in steps
    )
    return area / (steps[-1][1][0] - steps[0][0][0])
