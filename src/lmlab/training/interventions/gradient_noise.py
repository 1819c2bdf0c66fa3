"""Gradient noise (Neelakantan et al. 2015): fading normal noise on every gradient.

    g + N(0, sigma^2 / (1 + t)^fading)        in step t, from 0

Its mean is g. The paper's fading is 0.55. Sigma 0 turns it off. Cost: drawing a random number for
each weight.
"""

import torch
from pydantic import Field
from torch import Tensor

from lmlab.core.params import Params
from lmlab.model import noise
from lmlab.model.models.base import LanguageModel
from lmlab.training.interventions.base import GradientEdit, Gradients
from lmlab.training.learning_rules.base import LearningRule


class Options(Params):
    """Options of the intervention."""

    sigma: float = Field(ge=0)
    fading: float = Field(ge=0)


class GradientNoise(GradientEdit):
    """Its state is the number of calls."""

    remembers = True
    neutral = {"sigma": 0.0}
    calls: Tensor

    def __init__(self, options: Options, model: LanguageModel, rule: LearningRule) -> None:
        super().__init__(rule)
        self.options = options
        self.register_buffer("calls", torch.zeros((), dtype=torch.long))

    def edit(self, model: LanguageModel, gradients: Gradients) -> Gradients:
        if not self.options.sigma:
            return gradients
        sigma = self.options.sigma / float(1 + self.calls) ** (self.options.fading / 2)
        self.calls += 1
        return {
            name: gradient + sigma * noise.normal(gradient, self.site, name)
            for name, gradient in gradients.items()
        }
