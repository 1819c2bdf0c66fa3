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
from lmlab.model import noise, processes
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
    shares_population = True
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
        drawn: dict[int, dict[str, Tensor]] = {}

        def directions(group: int) -> dict[str, Tensor]:
            """Those of some members, stacked by parameter; the last ones drawn are at hand."""
            if group not in drawn:
                drawn.clear()
                members = range(group * at_once, min((group + 1) * at_once, count))
                by_member = [direction(parameters, self.draw, member) for member in members]
                drawn[group] = {
                    name: torch.stack([of_member[name] for of_member in by_member])
                    for name, _ in parameters
                }
            return drawn[group]

        def loss_and_slopes(group: int) -> Tensor:
            loss, slopes_N = directional_derivatives(
                directions(group), model, tokens_BT, targets_BT
            )
            none = slopes_N.new_zeros(at_once - len(slopes_N))
            return torch.cat([loss[None], slopes_N, none])

        with noise.repeatable():
            found = processes.in_turn(loss_and_slopes, -(-count // at_once))
            for group, (mean_loss, *slopes) in enumerate(found):
                loss = mean_loss
                slopes_N = torch.stack(slopes)[: count - group * at_once]
                for name, parameter in parameters:
                    estimate = torch.tensordot(slopes_N / count, directions(group)[name], dims=1)
                    accumulate_grad(parameter, estimate)
        return loss
