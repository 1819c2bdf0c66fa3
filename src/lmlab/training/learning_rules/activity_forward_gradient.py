"""Activity-perturbed forward gradient (Ren et al. 2023): the losses' exact slopes along noise at
every token of every map.

It replaces the backward pass by one that runs forward: beside every number goes its derivative
along random noise in the output of a linear map, or of all (`maps_at_once` 0, as in the paper,
which is cheaper and noisier for the cost). A node's gradient is estimated by its noise times the
slopes of the losses it can influence, those at its token and later in its sequence, and weights get
the product of that and the map's input: unbiased. Parameters outside linear maps (gains, decays)
get noise of their own, and the slope of the whole loss. It costs samples x groups times three to
four forward passes, where a group is `maps_at_once` linear maps, and one more is all that is
outside maps; one further forward pass; and the drawing of the noise, twice. No activation is kept.
A mixture's balancing penalty is not seen.
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
    slopes_along_noise,
    teach_nodes,
)
from lmlab.training.learning_rules.base import LearningRule


class Options(Params):
    """Options of the rule."""

    samples: int = Field(ge=1)
    maps_at_once: int = Field(ge=0)
    distribution: Distribution


class ActivityForwardGradient(LearningRule):
    """Gradient at a node = mean over samples of noise times slope along all noise."""

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
        count = self.options.samples
        samples = []
        with noise.repeatable():
            for group in noise_groups(model, self.options.maps_at_once):
                for member in range(count):
                    losses_BT, slopes_BT = slopes_along_noise(
                        model, group, member, self.draw, tokens_BT, targets_BT
                    )
                    samples.append(Sample(group, member, credit(slopes_BT) / count))
            teach_nodes(model, samples, self.draw, tokens_BT)
        return losses_BT.sum()
