"""Evolution strategies with noise of low rank (EGGROLL, Sarkar et al. 2025): a matrix moves by a
product of two thin ones.

As evolution strategies, which replace the backward pass by a population around the weights, but a
matrix's noise is A Bᵀ / sqrt(rank), so that rank x (rows + columns) numbers are drawn instead of
rows x columns. Each number still has mean 0 and variance 1 and is uncorrelated with the others, so
without shaping the estimate still tends to the gradient; the sum over a population has a rank of up
to population x rank. It costs two forward passes a pair, one more for the loss that is reported,
and a copy of the weights. A mixture's balancing penalty, which has no loss of its own, is not seen.
"""

import torch
from pydantic import Field
from torch import Tensor

from lmlab.core.params import Params
from lmlab.model import noise
from lmlab.model.models.base import LanguageModel
from lmlab.training.learning_rules._perturbing import (
    SHAPINGS,
    Shaping,
    low_rank,
    pair_losses,
    teach_weights,
)
from lmlab.training.learning_rules.base import LearningRule


class Options(Params):
    """Options of the rule."""

    population: int = Field(ge=1)
    sigma: float = Field(gt=0)
    shaping: Shaping
    rank: int = Field(ge=1)


class LowRankEvolution(LearningRule):
    """Gradient = mean over directions of (fate of one end - fate of the other) / (2 deviation)
    times the direction.
    """

    backward = False
    short_of_one_batch = (
        "few pairs make an estimate nearly orthogonal to the gradient: so few"
        " steps go part of the way"
    )

    def __init__(self, options: Options, model: LanguageModel) -> None:
        super().__init__()
        self.options, self.shape, self.draw = (
            options,
            SHAPINGS[options.shaping],
            low_rank(options.rank),
        )

    @torch.no_grad()
    def assign_gradients(
        self, model: LanguageModel, tokens_BT: Tensor, targets_BT: Tensor
    ) -> Tensor:
        pairs, sigma = self.options.population, self.options.sigma
        with noise.repeatable():
            loss, losses_N2 = pair_losses(model, pairs, self.draw, sigma, tokens_BT, targets_BT)
            fates_N2 = self.shape(losses_N2)
            slopes_N = (fates_N2[:, 0] - fates_N2[:, 1]) / (2 * sigma)
            teach_weights(model, self.draw, slopes_N / pairs)
        return loss
