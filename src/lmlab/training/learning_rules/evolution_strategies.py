"""Evolution strategies (Salimans et al. 2017): a population around the weights votes on the step.

    grad_w = mean over pairs of (f(L(w + sigma z)) - f(L(w - sigma z))) / (2 sigma) * z

Members come in antithetic pairs along random directions z in all weights; f is the shaping of the
losses. Without shaping this is SPSA with Gaussian z and a larger step: the gradient of the loss
blurred with standard deviation `sigma`. With `ranks` in place of losses no outlier counts for more
than the worst member, and any monotone change of the losses leaves the estimate as it is; its norm
then says nothing about the slope. No backward pass. A mixture of experts' balancing penalty, which
has no loss of its own, is not seen. Cost: two forward passes for a pair, one more for the reported
loss, and a copy of the weights. No activation is kept.
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
    gaussian,
)
from lmlab.training.learning_rules.base import LearningRule


class Options(Params):
    """Options of the rule. `population` counts pairs."""

    population: int = Field(ge=1)
    sigma: float = Field(gt=0)
    shaping: Shaping


class EvolutionStrategies(LearningRule):
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

    @torch.no_grad()
    def assign_gradients(
        self, model: LanguageModel, tokens_BT: Tensor, targets_BT: Tensor
    ) -> Tensor:
        pairs = self.options.population
        sigma = self.options.sigma
        with noise.repeatable():
            loss, losses_N2 = antithetic_losses(
                model, pairs, gaussian, sigma, tokens_BT, targets_BT
            )
            shaped_N2 = self.shape(losses_N2)
            slopes_N = (shaped_N2[:, 0] - shaped_N2[:, 1]) / (2 * sigma)
            accumulate_directions(model, gaussian, slopes_N / pairs)
        return loss
