"""SPSA (Spall 1992; for language models MeZO, Malladi et al. 2023): two losses give one slope.

    grad_w = mean over directions z of (L(w + sigma z) - L(w - sigma z)) / (2 sigma) * z

Simultaneous perturbation stochastic approximation: z is a random direction in all weights. No
backward pass. The estimate is exact in expectation where the loss is quadratic within the step, and
very noisy: its squared norm is the gradient's times the number of weights, divided by `directions`.
A mixture of experts' balancing penalty, which has no loss of its own, is not seen. Cost: two
forward passes for a direction, one more for the reported loss, and a copy of the weights. No
activation is kept.
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
    accumulate_directions,
    antithetic_losses,
)
from lmlab.training.learning_rules.base import LearningRule


class Options(Params):
    """Options of the rule."""

    directions: int = Field(ge=1)
    sigma: float = Field(gt=0)
    distribution: Distribution


class SPSA(LearningRule):
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
        directions = self.options.directions
        sigma = self.options.sigma
        with noise.repeatable():
            loss, losses_N2 = antithetic_losses(
                model, directions, self.draw, sigma, tokens_BT, targets_BT
            )
            slopes_N = (losses_N2[:, 0] - losses_N2[:, 1]) / (2 * sigma)
            accumulate_directions(model, self.draw, slopes_N / directions)
        return loss
