"""Forward gradient (Baydin et al. 2022): the loss's exact slope along a random direction, by
forward-mode differentiation.

It replaces the backward pass by one that runs forward with the loss: beside every number goes its
derivative along a random direction in all weights. Slope times direction is the estimate: unbiased,
and the slope is exact. But its squared error is that of the gradient times (weights + 1) /
directions for Gaussian noise, (weights - 1) / directions for Rademacher, so its cosine with the
gradient is near 1 / sqrt(1 + weights / directions). A direction costs two to six forward passes,
less where several are followed `at_once`, and as many copies of the weights and of what a layer
holds; no activation is kept. A mixture's balancing penalty, which has no loss of its own, is not
seen.
"""

import torch
from pydantic import Field
from torch import Tensor

from lmlab.core.params import Params
from lmlab.model import noise
from lmlab.model.models.base import LanguageModel
from lmlab.training.learning_rules._perturbing import (
    DRAWS,
    Distribution,
    add_to_gradient,
    direction,
    slopes_along,
    taught,
)
from lmlab.training.learning_rules.base import LearningRule


class Options(Params):
    """Options of the rule."""

    directions: int = Field(ge=1)
    at_once: int = Field(ge=1)
    distribution: Distribution


class ForwardGradient(LearningRule):
    """Gradient = mean over directions v of (slope of the loss along v) v."""

    backward = False
    short_of_one_batch = (
        "few directions make an estimate nearly orthogonal to the gradient: so"
        " few steps go part of the way"
    )

    def __init__(self, options: Options, model: LanguageModel) -> None:
        super().__init__()
        self.options, self.draw = options, DRAWS[options.distribution]

    @torch.no_grad()
    def assign_gradients(
        self, model: LanguageModel, tokens_BT: Tensor, targets_BT: Tensor
    ) -> Tensor:
        count, at_once = self.options.directions, self.options.at_once
        parameters = taught(model)
        with noise.repeatable():
            for first in range(0, count, at_once):
                members = range(first, min(first + at_once, count))
                drawn = [direction(parameters, self.draw, member) for member in members]
                directions = {
                    name: torch.stack([one[name] for one in drawn]) for name, _ in parameters
                }
                loss, slopes_N = slopes_along(directions, model, tokens_BT, targets_BT)
                for name, parameter in parameters:
                    add_to_gradient(
                        parameter, torch.tensordot(slopes_N / count, directions[name], dims=1)
                    )
        return loss
