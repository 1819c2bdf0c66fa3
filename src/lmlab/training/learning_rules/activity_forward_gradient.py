"""Activity-perturbed forward gradient (Ren et al. 2023): slopes of the losses along node noise.

    grad_y[t] = mean over samples of z[t] * sum over s >= t of d L_s(y + sigma z) / d sigma

y is the output of a linear map (of a layer, convolution or embedding) and z noise at every token.
Forward-mode differentiation carries the derivative along z beside every number of the forward pass.
An output's gradient is estimated from the slopes of the losses it can influence: those at its token
t and later in its sequence. Weights get grad_y times the map's input. Parameters outside linear
maps (gains, decays) get noise of their own and the slope of the whole loss.

No backward pass, and the estimate is unbiased. With `maps_at_once` 0 all maps get noise in one
pass, as in the paper, which is cheaper and noisier for its cost. A mixture of experts' balancing
penalty is not seen. Cost: samples * groups times three to four forward passes, where a group is
`maps_at_once` linear maps and one more holds everything outside maps; one further forward pass; and
drawing the noise twice. No activation is kept.
"""

import torch
from pydantic import Field
from torch import Tensor

from lmlab.core.params import Params
from lmlab.model import noise, processes
from lmlab.model.models.base import LanguageModel
from lmlab.training.learning_rules._node_noise import (
    NodeSample,
    accumulate_node_gradients,
    credit,
    derivatives_along_node_noise,
    noise_groups,
)
from lmlab.training.learning_rules._weight_noise import DRAWS, Distribution
from lmlab.training.learning_rules.base import LearningRule


class Options(Params):
    """Options of the rule."""

    samples: int = Field(ge=1)
    maps_at_once: int = Field(ge=0)
    distribution: Distribution


class ActivityForwardGradient(LearningRule):
    """It has no state."""

    backward = False
    shares_population = True
    cannot_overfit = (
        "with one or two samples for each map it is too noisy for so few steps; with 8 it learns a"
        " small batch by heart"
    )

    def __init__(self, options: Options, model: LanguageModel) -> None:
        super().__init__()
        self.options = options
        self.draw = DRAWS[options.distribution]

    @torch.no_grad()
    def assign_gradients(
        self, model: LanguageModel, tokens_BT: Tensor, targets_BT: Tensor
    ) -> Tensor:
        count = self.options.samples
        groups = noise_groups(model, self.options.maps_at_once)
        draws = [(group, member) for group in groups for member in range(count)]

        def losses_and_slopes(number: int) -> Tensor:
            group, member = draws[number]
            found = derivatives_along_node_noise(
                model, group, member, self.draw, tokens_BT, targets_BT
            )
            return torch.stack(found)

        samples = []
        with noise.repeatable():
            found = processes.in_turn(losses_and_slopes, len(draws))
            for (group, member), (losses_BT, slopes_BT) in zip(draws, found, strict=True):
                loss = losses_BT.sum()
                samples.append(NodeSample(group, member, credit(slopes_BT) / count))
            accumulate_node_gradients(model, samples, self.draw, tokens_BT)
        return loss
