"""Predictive coding whose predictions follow the values they are made from (Whittington & Bogacz
2017).

Every block's output, and the embedding's, is a node with a value of its own, which the unit below
predicts from its value. The energy is the sum of all squared errors of prediction, halved, plus
`pull` times the loss that the last value gives, summed over the tokens. From the forward pass on,
where all errors are 0, values follow the energy's slope for some `sweeps`; then the weights follow
it where the values have come to. No node needs more than the units above and below it.

Replaced: the backward pass through all blocks, by values that settle. Exact: within a block, and at
the head where the last value has moved to. It is backprop in the limit of pull 0 with values that
have settled; that takes a small step where blocks are steep (below 2 / the energy's largest
curvature) and many sweeps. After K sweeps, in the limit of step 0, the gradient of the unit at
distance d from the loss (1 for the last block) is backprop's times binomial(K, d) step^d, which
counts the ways in which K sweeps can hand an error down d times: 0 where there are fewer sweeps
than units. With as many (`sweeps` 0) that is enough for an optimizer that scales each weight's
steps, as Adam does. Costs a forward and a backward pass a sweep.
"""

import torch
from pydantic import Field
from torch import Tensor

from lmlab.core.params import Params
from lmlab.model import noise
from lmlab.model.models.base import LanguageModel, next_token_loss
from lmlab.training.learning_rules._relaxing import taken_apart
from lmlab.training.learning_rules.base import LearningRule


class Options(Params):
    """Options of the rule."""

    sweeps: int = Field(ge=0)
    step: float = Field(gt=0, le=1)
    pull: float = Field(gt=0)


class StrictPredictiveCoding(LearningRule):
    """Gradients are divided by the pull and the number of tokens, which brings them to the mean
    loss's scale.
    """

    backward = False
    short_of_one_batch = (
        "it learns the batch in some thirty steps and loses it again: at that rate AdamW makes"
        " blocks so steep that values"
        " overshoot in steps of this size; much smaller ones are lost in float32's rounding"
        " before they reach lower units"
    )

    def __init__(self, options: Options, model: LanguageModel) -> None:
        super().__init__()
        self.sweeps, self.step, self.pull = (
            options.sweeps or len(model.blocks) + 1,
            options.step,
            options.pull,
        )

    def assign_gradients(
        self, model: LanguageModel, tokens_BT: Tensor, targets_BT: Tensor
    ) -> Tensor:
        with noise.repeatable():  # every pass drops the same
            with torch.no_grad():
                values = taken_apart(model, tokens_BT)[1]
                loss = next_token_loss(model.head(values[-1]), targets_BT)
            for _ in range(self.sweeps):
                slopes = torch.autograd.grad(
                    energy(model, tokens_BT, targets_BT, values, self.pull), values
                )
                scale = self.step * self.pull * targets_BT.numel()
                values = [
                    (value - scale * slope).detach().requires_grad_()
                    for value, slope in zip(values, slopes)
                ]
            torch.autograd.backward(energy(model, tokens_BT, targets_BT, values, self.pull))
        return loss


def energy(
    model: LanguageModel, tokens_BT: Tensor, targets_BT: Tensor, values: list[Tensor], pull: float
) -> Tensor:
    """The energy divided by pull times the number of tokens, so in nats per token: where no error
    is, the mean loss.
    """
    predictions = [
        model.embed(tokens_BT),
        *(block(value) for block, value in zip(model.blocks, values)),
    ]
    squares = [
        (prediction - value).square().sum()
        for prediction, value in zip(predictions, values, strict=True)
    ]
    loss = next_token_loss(model.head(values[-1]), targets_BT)
    return loss + torch.stack(squares).sum() / (2 * pull * targets_BT.numel())
