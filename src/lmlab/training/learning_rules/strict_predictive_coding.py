"""Predictive coding whose predictions follow the values (Whittington & Bogacz 2017).

    E = 1/2 sum over k of (block_k(x_(k-1)) - x_k)^2 + pull * L(x_K);    x <- x - step dE/dx

The output of every block, and of the embedding, is a node with a value x_k of its own, which the
unit below predicts from its own value. L is the loss summed over tokens. From the forward pass on,
where all errors are 0, values descend E for some `sweeps`; then the weights descend E at the values
reached. No node needs more than the units directly above and below it.

The settling values replace the backward pass through all blocks; autograd is exact within a block,
and at the head where the last value has moved to. The rule becomes backprop in the limit of pull 0
with values that have settled, which takes many sweeps, and a small step where blocks are steep
(below 2 / the largest curvature of E). After K sweeps, in the limit of step 0, the gradient of the
unit at distance d from the loss (1 for the last block) is backprop's times binomial(K, d) step^d,
which counts the ways in which K sweeps can pass an error down d times: 0 where there are fewer
sweeps than units. As many sweeps as units (`sweeps` 0) are enough for an optimizer that rescales
each weight's steps, as Adam does. Cost: a forward and a backward pass for each sweep, and one of
each more.
"""

import torch
from pydantic import Field
from torch import Tensor

from lmlab.core.params import Params
from lmlab.model import noise
from lmlab.model.models.base import LanguageModel, next_token_loss
from lmlab.training.learning_rules._detached_blocks import DetachedBlocks
from lmlab.training.learning_rules.base import LearningRule


class Options(Params):
    """Options of the rule."""

    sweeps: int = Field(ge=0)
    step: float = Field(gt=0, le=1)
    pull: float = Field(gt=0)


class StrictPredictiveCoding(LearningRule):
    """It has no state. Gradients are divided by pull * tokens, for the mean loss's scale."""

    backward = False
    cannot_overfit = (
        "it learns the batch in some thirty steps and loses it again: at that learning rate AdamW"
        " makes blocks so steep that values overshoot with steps of this size; much smaller ones"
        " are lost in float32's rounding before they reach lower units"
    )

    def __init__(self, options: Options, model: LanguageModel) -> None:
        super().__init__()
        self.sweeps = options.sweeps or len(model.blocks) + 1
        self.step = options.step
        self.pull = options.pull

    def assign_gradients(
        self, model: LanguageModel, tokens_BT: Tensor, targets_BT: Tensor
    ) -> Tensor:
        step = self.step * self.pull * targets_BT.numel()  # for the energy in nats per token
        with noise.repeatable():  # every pass drops the same units
            with torch.no_grad():
                blocks = DetachedBlocks(model, tokens_BT, full_precision=True)
                loss = next_token_loss(blocks.logits_BTV, targets_BT)
            values = blocks.leaves
            for _ in range(self.sweeps):
                energy_now = energy(model, tokens_BT, targets_BT, values, self.pull)
                slopes = torch.autograd.grad(energy_now, values)
                values = [
                    (value - step * slope).detach().requires_grad_()
                    for value, slope in zip(values, slopes)
                ]
            torch.autograd.backward(energy(model, tokens_BT, targets_BT, values, self.pull))
        return loss


def energy(
    model: LanguageModel, tokens_BT: Tensor, targets_BT: Tensor, values: list[Tensor], pull: float
) -> Tensor:
    """E / (pull * tokens), in nats per token: the mean loss where no prediction has an error."""
    predictions = [model.embed(tokens_BT)]
    for block, value in zip(model.blocks, values):
        predictions.append(block(value))
    squared_errors = [
        (prediction - value).square().sum()
        for prediction, value in zip(predictions, values, strict=True)
    ]
    loss = next_token_loss(model.head(values[-1]), targets_BT)
    return loss + torch.stack(squared_errors).sum() / (2 * pull * targets_BT.numel())
