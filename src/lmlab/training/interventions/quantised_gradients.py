"""Stochastic quantisation (Alistarh et al. 2017, "QSGD"): gradients rounded to few levels.

    step * floor(g / step + u),    step = max |g| / levels,    u uniform in [0, 1)

Each number becomes one of the two multiples of `step` next to it, the nearer the likelier, so that
the mean is g. With one level it is -max, 0 or max. The maximum is that of a parameter's gradient. 0
levels turn it off. Cost: drawing a random number for each weight.
"""

import torch
from pydantic import Field

from lmlab.core.params import Params
from lmlab.model import noise
from lmlab.model.models.base import LanguageModel
from lmlab.training.interventions.base import GradientEdit, Gradients
from lmlab.training.learning_rules.base import LearningRule


class Options(Params):
    """Options of the intervention."""

    levels: int = Field(ge=0)


class QuantisedGradients(GradientEdit):
    """It has no state."""

    neutral = {"levels": 0}

    def __init__(self, options: Options, model: LanguageModel, rule: LearningRule) -> None:
        super().__init__(rule)
        self.levels = options.levels

    def edit(self, model: LanguageModel, gradients: Gradients) -> Gradients:
        if not self.levels:
            return gradients
        rounded: Gradients = {}
        for name, gradient in gradients.items():
            step = gradient.abs().max() / self.levels
            smallest = torch.finfo(gradient.dtype).tiny
            in_steps = gradient / step.clamp(min=smallest)
            rounded[name] = step * (in_steps + noise.uniform(gradient, self.site, name)).floor()
        return rounded
