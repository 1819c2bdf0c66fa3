"""Evolution strategies (Salimans et al. 2017): a population around the weights, and a step towards
those that do better.

It replaces the backward pass: members are pairs, `sigma` forward and back along random directions
in all weights, and the estimate is the mean of the directions, each weighed by how its two ends
fared. Without shaping that is SPSA with a larger step: the gradient of the loss as `sigma` blurs
it. With ranks in place of losses no outlier counts for more than the worst, and any monotone change
of the losses leaves the estimate as it is; its length then says nothing of the slope. It costs two
forward passes a pair, one more for the loss that is reported, and a copy of the weights; no
activation is kept. A mixture's balancing penalty, which has no loss of its own, is not seen.
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
    gaussian,
    pair_losses,
    teach_weights,
)
from lmlab.training.learning_rules.base import LearningRule


class Options(Params):
    """Options of the rule."""

    population: int = Field(ge=1)
    sigma: float = Field(gt=0)
    shaping: Shaping


class EvolutionStrategies(LearningRule):
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
        self.options, self.shape = options, SHAPINGS[options.shaping]

    @torch.no_grad()
    def assign_gradients(
        self, model: LanguageModel, tokens_BT: Tensor, targets_BT: Tensor
    ) -> Tensor:
        pairs, sigma = self.options.population, self.options.sigma
        with noise.repeatable():
            loss, losses_N2 = pair_losses(model, pairs, gaussian, sigma, tokens_BT, targets_BT)
            fates_N2 = self.shape(losses_N2)
            slopes_N = (fates_N2[:, 0] - fates_N2[:, 1]) / (2 * sigma)
            teach_weights(model, gaussian, slopes_N / pairs)
        return loss
