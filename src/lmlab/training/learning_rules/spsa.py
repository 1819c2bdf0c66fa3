"""Simultaneous perturbation (SPSA, Spall 1992; for language models MeZO, Malladi et al. 2023): two
losses tell one slope.

It replaces the backward pass: the loss is measured a small step forward and back along a random
direction in all weights, and the slope between, times the direction, is the estimate. That is exact
in expectation for a loss that is quadratic within the step, and very noisy: its squared length is
the number of weights times that of the gradient, divided by `directions`. It costs two forward
passes a direction, one more for the loss that is reported, and a copy of the weights; no activation
is kept. A mixture's balancing penalty, which has no loss of its own, is not seen.
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
    pair_losses,
    teach_weights,
)
from lmlab.training.learning_rules.base import LearningRule


class Options(Params):
    """Options of the rule."""

    directions: int = Field(ge=1)
    sigma: float = Field(gt=0)
    distribution: Distribution


class SPSA(LearningRule):
    """Gradient = mean over directions z of (loss(w + deviation z) - loss(w - deviation z)) / (2
    deviation) z.
    """

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
        directions, sigma = self.options.directions, self.options.sigma
        with noise.repeatable():
            loss, losses_N2 = pair_losses(
                model, directions, self.draw, sigma, tokens_BT, targets_BT
            )
            slopes_N = (losses_N2[:, 0] - losses_N2[:, 1]) / (2 * sigma)
            teach_weights(model, self.draw, slopes_N / directions)
        return loss
