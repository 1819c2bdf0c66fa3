"""Node perturbation (Williams 1992; Lillicrap et al. 2020): noise at linear maps' outputs.

    grad_y[t] = mean over samples of z[t] * sum over s >= t of (L_s(y + sigma z) - L_s(y)) / sigma

A node is one number in the output y of a linear map (of a layer, convolution or embedding). Noise z
is added to it, and its gradient is estimated from what happens to the losses it can influence:
those at its token t and later in its sequence. Weights get grad_y times the map's input. (The
outputs of whole blocks would be fewer nodes, but would need a backward pass inside the block.)
Parameters outside linear maps (gains, decays) get noise of their own and the change of the whole
loss.

No backward pass. In expectation the estimate is exact to first order in `sigma`; its cosine with
the gradient is 1 / sqrt(1 + variance / samples), where the noise of all other maps in the pass
counts as variance: that is why few maps at once are worth their passes. A mixture of experts'
balancing penalty is not seen. Cost: samples * groups + 2 forward passes, where a group is
`maps_at_once` linear maps and one more holds everything outside maps, and drawing the noise twice.
No activation is kept.
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
    losses_with_node_noise,
    noise_groups,
    shares_of_mean_loss,
)
from lmlab.training.learning_rules._weight_noise import DRAWS, Distribution
from lmlab.training.learning_rules.base import LearningRule


class Options(Params):
    """Options of the rule."""

    samples: int = Field(ge=1)
    maps_at_once: int = Field(ge=0)
    sigma: float = Field(gt=0)
    distribution: Distribution


class NodePerturbation(LearningRule):
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
        sigma = self.options.sigma
        count = self.options.samples
        groups = noise_groups(model, self.options.maps_at_once)
        draws = [(group, member) for group in groups for member in range(count)]

        def losses(number: int) -> Tensor:
            if number == 0:
                return shares_of_mean_loss(model, {}, tokens_BT, targets_BT)
            group, member = draws[number - 1]
            return losses_with_node_noise(
                model, group, member, self.draw, sigma, tokens_BT, targets_BT
            )

        with noise.repeatable():
            clean_BT, *all_noisy = processes.in_turn(losses, 1 + len(draws))
            samples = [
                NodeSample(group, member, credit(noisy_BT - clean_BT) / (sigma * count))
                for (group, member), noisy_BT in zip(draws, all_noisy, strict=True)
            ]
            accumulate_node_gradients(model, samples, self.draw, tokens_BT)
        return clean_BT.sum()
