"""Node perturbation (Williams 1992; beside backprop: Lillicrap et al. 2020), with noise of its own
at every token.

It replaces the backward pass: noise is added to the output of a linear map, and a node's gradient
is estimated by its noise times what happened to the losses it can influence, those at its token and
later in its sequence. Weights get the product of that and the map's input. (Outputs of whole blocks
would be fewer nodes, but would need a backward pass inside the block.) Parameters outside linear
maps (gains, decays) get noise of their own, and the change of the whole loss. Exact in expectation
to the first order of `sigma`; the cosine with the gradient is 1 / sqrt(1 + variance / samples). One
map at a time is worth its passes: the noise of the others would count as error. It costs samples x
groups + 2 forward passes, where a group is `maps_at_once` linear maps, and one more is all that is
outside maps; and the drawing of the noise, twice. No activation is kept. A mixture's balancing
penalty is not seen.
"""

import torch
from pydantic import Field
from torch import Tensor

from lmlab.core.params import Params
from lmlab.model import noise
from lmlab.model.models.base import LanguageModel
from lmlab.training.learning_rules._perturbing import DRAWS, Distribution
from lmlab.training.learning_rules._perturbing_nodes import (
    Sample,
    credit,
    noise_groups,
    noisy_losses,
    teach_nodes,
    token_losses,
)
from lmlab.training.learning_rules.base import LearningRule


class Options(Params):
    """Options of the rule."""

    samples: int = Field(ge=1)
    maps_at_once: int = Field(ge=0)
    sigma: float = Field(gt=0)
    distribution: Distribution


class NodePerturbation(LearningRule):
    """Gradient at a node = mean over samples of noise times (losses with noise - losses without) /
    deviation.
    """

    backward = False
    short_of_one_batch = (
        "with one or two samples a map, too noisy for so few steps; with 8 it"
        " learns a small batch by heart"
    )

    def __init__(self, options: Options, model: LanguageModel) -> None:
        super().__init__()
        self.options, self.draw = options, DRAWS[options.distribution]

    @torch.no_grad()
    def assign_gradients(
        self, model: LanguageModel, tokens_BT: Tensor, targets_BT: Tensor
    ) -> Tensor:
        sigma, count = self.options.sigma, self.options.samples
        samples = []
        with noise.repeatable():
            clean_BT = token_losses(model, {}, tokens_BT, targets_BT)
            for group in noise_groups(model, self.options.maps_at_once):
                for member in range(count):
                    noisy_BT = noisy_losses(
                        model, group, member, self.draw, sigma, tokens_BT, targets_BT
                    )
                    samples.append(
                        Sample(group, member, credit(noisy_BT - clean_BT) / (sigma * count))
                    )
            teach_nodes(model, samples, self.draw, tokens_BT)
        return clean_BT.sum()
