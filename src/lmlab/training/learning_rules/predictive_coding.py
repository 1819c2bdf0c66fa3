"""Predictive coding with fixed predictions (Whittington & Bogacz 2017; fixed: Millidge et al. 2020,
Song et al. 2020).

Every block's output, and the embedding's, is a node with a value of its own, which the unit below
predicts. The energy is the sum of all squared errors of prediction, halved, plus the loss that the
last value gives. Values follow its slope for some `sweeps`, each node told of its own error and of
the one above alone; then the weights do. Here predictions and their slopes stay as the forward pass
left them: a sweep moves an error by step * (the error above, through its block, - itself).

Replaced: the one backward pass through all blocks. Exact: within a block, and at the head. With
step 1, k sweeps are backprop in the upper k units and nothing below; as many as there are units
(`sweeps` 0) are backprop. Costs as many backward passes as sweeps, and one, but no unit waits for
another. strict_predictive_coding lets predictions follow.
"""

import torch
from pydantic import Field
from torch import Tensor

from lmlab.core.params import Params
from lmlab.model.models.base import LanguageModel, next_token_loss
from lmlab.training.learning_rules._relaxing import taken_apart, teach
from lmlab.training.learning_rules.base import LearningRule


class Options(Params):
    """Options of the rule."""

    sweeps: int = Field(ge=0)
    step: float = Field(gt=0, le=1)


class PredictiveCoding(LearningRule):
    """An error is prediction - value, in the mean loss's scale: once all is settled, the gradient
    at that output.
    """

    backward = False

    def __init__(self, options: Options, model: LanguageModel) -> None:
        super().__init__()
        self.sweeps, self.step = options.sweeps or len(model.blocks) + 1, options.step

    def assign_gradients(
        self, model: LanguageModel, tokens_BT: Tensor, targets_BT: Tensor
    ) -> Tensor:
        outputs, values = taken_apart(model, tokens_BT)
        loss = next_token_loss(model.head(values[-1]), targets_BT)
        torch.autograd.backward(loss)
        pull = values[-1].grad
        assert pull is not None
        errors = [torch.zeros_like(value) for value in values]
        for _ in range(self.sweeps):
            from_above = [
                through(output, value, error)
                for output, value, error in zip(outputs[1:], values, errors[1:])
            ]
            targets = [*from_above, pull]
            errors = [
                error + self.step * (target - error)
                for error, target in zip(errors, targets, strict=True)
            ]
        teach(outputs, errors)
        return loss.detach()


def through(output: Tensor, value: Tensor, error: Tensor) -> Tensor:
    """The error at a block's output carried to its input by its transposed Jacobian, which stays
    for the next sweep.
    """
    (carried,) = torch.autograd.grad(
        output, value, error, retain_graph=True, materialize_grads=True
    )
    return carried
