"""Forward gradient (Baydin et al. 2022): the loss's exact slope along a random direction, times it.

    grad_w = mean over directions v of (dL/dw . v) v

Forward-mode differentiation carries the derivative along v, a random direction in all weights,
beside every number of the forward pass. No backward pass, and the estimate is unbiased. But its
squared error is the gradient's squared norm times (weights + 1) / directions for Gaussian v, and
(weights - 1) / directions for Rademacher v, so its cosine with the gradient is near 1 / sqrt(1 +
weights / directions). A mixture of experts' balancing penalty, which has no loss of its own, is not
seen. Cost: two to six forward passes for a direction, less where several are followed `at_once`,
and `at_once` copies of the weights and of what a layer holds. No activation is kept.
"""

import torch
from pydantic import Field
from torch import Tensor

from lmlab.core.params import Params
from lmlab.model import noise
from lmlab.model.models.base import LanguageModel
from lmlab.training.learning_rules._weight_noise import (
    DRAWS,
    Distribution,
    direction,
    directional_derivatives,
    trainable_parameters,
)
from lmlab.training.learning_rules.base import LearningRule, accumulate_grad


class Options(Params):
    """Options of the rule."""

    directions: int = Field(ge=1)
    at_once: int = Field(ge=1)
    distribution: Distribution


class ForwardGradient(LearningRule):
    """It has no state."""

    backward = False
    cannot_overfit = (
        "few directions make an estimate nearly orthogonal to the gradient, so few steps go only"
        " part of the way"
    )

    def __init__(self, options: Options, model: LanguageModel) -> None:
        super().__init__()
        self.options = options
        self.draw = DRAWS[options.distribution]

    @torch.no_grad()
    def assign_gradients(
        self, model: LanguageModel, tokens_BT: Tensor, targets_BT: Tensor
    ) -> Tensor:
        count = self.options.directions
        at_once = self.options.at_once
        parameters = trainable_parameters(model)
        with noise.repeatable():
            for first in range(0, count, at_once):
                members = range(first, min(first + at_once, count))
                by_member = [direction(parameters, self.draw, member) for member in members]
                directions = {
                    name: torch.stack([of_member[name] for of_member in by_member])
                    for name, _ in parameters
                }
                loss, slopes_N = directional_derivatives(directions, model, tokens_BT, targets_BT)
                for name, parameter in parameters:
                    estimate = torch.tensordot(slopes_N / count, directions[name], dims=1)
                    accumulate_grad(parameter, estimate)
        return loss
