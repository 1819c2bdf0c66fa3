"""Low-rank evolution strategies (EGGROLL, Sarkar et al. 2025): a matrix's noise is a thin product.

    grad_W = mean over pairs of (f(L(W + sigma Z)) - f(L(W - sigma Z))) / (2 sigma) * Z,
    Z = A B^T / sqrt(rank),    A: rows x rank and B: columns x rank, standard normal

As in evolution strategies, a population of antithetic pairs around the weights replaces the
backward pass, and f is the shaping of the losses (none, or their ranks). Only rank * (rows +
columns) numbers are drawn for a matrix instead of rows * columns; vectors get full noise. Each
number in Z still has mean 0 and variance 1 and is uncorrelated with the others, so without shaping
the estimate still tends to the gradient; its rank is at most population * rank. A mixture of
experts' balancing penalty, which has no loss of its own, is not seen. Cost: two forward passes for
a pair, one more for the reported loss, and a copy of the weights. No activation is kept.
"""

import torch
from pydantic import Field
from torch import Tensor

from lmlab.core.params import Params
from lmlab.model import noise
from lmlab.model.models.base import LanguageModel
from lmlab.training.learning_rules._weight_noise import (
    SHAPINGS,
    Shaping,
    accumulate_directions,
    antithetic_losses,
    low_rank,
)
from lmlab.training.learning_rules.base import LearningRule


class Options(Params):
    """Options of the rule. `population` counts pairs."""

    population: int = Field(ge=1)
    sigma: float = Field(gt=0)
    shaping: Shaping
    rank: int = Field(ge=1)


class LowRankEvolution(LearningRule):
    """It has no state."""

    backward = False
    shares_population = True
    cannot_overfit = (
        "few pairs make an estimate nearly orthogonal to the gradient, so few steps go only part of"
        " the way"
    )

    def __init__(self, options: Options, model: LanguageModel) -> None:
        super().__init__()
        self.options = options
        self.shape = SHAPINGS[options.shaping]
        self.draw = low_rank(options.rank)

    @torch.no_grad()
    def assign_gradients(
        self, model: LanguageModel, tokens_BT: Tensor, targets_BT: Tensor
    ) -> Tensor:
        pairs = self.options.population
        sigma = self.options.sigma
        with noise.repeatable():
            loss, losses_N2 = antithetic_losses(
                model, pairs, self.draw, sigma, tokens_BT, targets_BT
            )
            shaped_N2 = self.shape(losses_N2)
            slopes_N = (shaped_N2[:, 0] - shaped_N2[:, 1]) / (2 * sigma)
            accumulate_directions(model, self.draw, slopes_N / pairs)
        return loss
