"""Stochastic quantisation (Alistarh et al. 2017, "QSGD"): gradients of a few levels, rounded up or
down at random.
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
    """Each number becomes a multiple of (largest in its tensor) / levels, the nearer neighbour the
    likelier: the mean is g.

    With one level it is minus the largest, zero or the largest. 0 levels: no rounding.
    """

    neutral = {"levels": 0}

    def __init__(self, options: Options, model: LanguageModel, rule: LearningRule) -> None:
        super().__init__(rule)
        self.levels = options.levels

    def edit(self, model: LanguageModel, gradients: Gradients) -> Gradients:
        if not self.levels:
            return gradients
        rounded = {}
        for name, gradient in gradients.items():
            step = gradient.abs().max() / self.levels
            places = gradient / step.clamp(min=torch.finfo(gradient.dtype).tiny)
            rounded[name] = step * (places + noise.uniform(gradient, self.site, name)).floor()
        return rounded
