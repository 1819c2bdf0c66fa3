"""How fast a run learned: tokens and FLOPs to given validation losses, and the curve's mean."""

from collections.abc import Mapping
from itertools import pairwise
from math import exp, log
from typing import ClassVar

from pydantic import Field

from lmlab.core.params import Params
from lmlab.evaluation.about import VALIDATED_AT
from lmlab.evaluation.measures.base import DoesNotApply, Measure, Numbers, Trained
from lmlab.training.cost import bytes_at, flops_at


class Options(Params):
    """Options of the measure."""

    targets: list[float] = Field(min_length=1)


class LearningCurve(Measure):
    """Tokens and FLOPs to each target in bits per byte, and the mean over the validation curve.

    The losses are those of the training log, whose windows do not overlap. `tokens_to` and
    `flops_to` have an entry for each target reached between two validations, interpolated linearly
    in the logarithm of tokens. If the first validation was already below a target, the amount until
    then is an upper bound and stands in `tokens_to_at_most` (a smaller `train.validate_every` says
    more). If a target was never reached, all that the run took is a lower bound and stands in
    `tokens_to_more_than`. FLOPs have the same blocks.

    `mean` is the area under the curve over the logarithm of tokens, from the first validation to
    the last, divided by its length: it compares runs that validate at the same steps. FLOPs are
    those of backpropagation, whatever the learning rule. Seconds differ from run to run, so they
    are in data/timing/train.json.
    """

    less_is_better = ("tokens_to.*", "bytes_to.*", "flops_to.*", "mean")
    across_tokenizers = ("mean", "bytes", "bytes_to*", "flops", "flops_to*")
    facts = ("tokens", "bytes", "flops", "*_to_at_most.*", "*_to_more_than.*")
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
        numbers: dict[str, float | Mapping[str, float]] = {
            "tokens": tokens[-1],
            "bytes": bytes_at(trained.saved, tokens[-1]),
            "flops": flops_at(trained.saved, tokens[-1]),
        }
        for block, tokens_to in self._tokens_to(tokens, bits).items():
            numbers[f"tokens_{block}"] = tokens_to
            numbers[f"flops_{block}"] = {
                target: flops_at(trained.saved, count) for target, count in tokens_to.items()
            }
            numbers[f"bytes_{block}"] = {
                target: bytes_at(trained.saved, count) for target, count in tokens_to.items()
            }
        if len(rows) > 1:
            numbers["mean"] = mean_over_logarithm(tokens, bits)
        return numbers

    def _tokens_to(self, tokens: list[float], bits: list[float]) -> dict[str, dict[str, float]]:
        """Tokens to each target, in the block for what is known of it."""
        exact: dict[str, float] = {}
        at_most: dict[str, float] = {}
        more_than: dict[str, float] = {}
        for target in self.targets:
            crossing = reached(tokens, bits, target)
            if target >= bits[0]:
                at_most[str(target)] = tokens[0]
            elif crossing is None:
                more_than[str(target)] = tokens[-1]
            else:
                exact[str(target)] = crossing
        return {"to": exact, "to_at_most": at_most, "to_more_than": more_than}


def reached(amounts: list[float], losses: list[float], target: float) -> float | None:
    """The amount (tokens, FLOPs or seconds, ascending) at which the loss first was `target`.

    Between two amounts the loss is interpolated linearly in the logarithm of the amount, or in the
    amount itself if the earlier one is 0. The first amount if the loss is no higher there already,
    None if it is never reached.
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
    """The mean loss over the logarithm of the amount, by the trapezoidal rule.

    There must be at least two amounts, positive and ascending.
    """
    points = list(zip(map(log, amounts), losses, strict=True))
    area = sum(
        (later - earlier) * (first + second) / 2
        for (earlier, first), (later, second) in pairwise(points)
    )
    return area / (points[-1][0] - points[0][0])
