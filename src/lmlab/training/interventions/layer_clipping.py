"""Gradient clipping tensor by tensor: a large gradient in one does not shrink other steps.

    g_p * min(1, limit / |g_p|)        for every parameter p

Limit 0 turns it off. Cost: a few operations on each gradient.
"""

from pydantic import Field

from lmlab.core.params import Params
from lmlab.model.models.base import LanguageModel
from lmlab.training.interventions.base import GradientEdit, Gradients, clip_factor, total_norm
from lmlab.training.learning_rules.base import LearningRule


class Options(Params):
    """Options of the intervention."""

    limit: float = Field(ge=0)


class LayerClipping(GradientEdit):
    """It has no state."""

    neutral = {"limit": 0.0}

    def __init__(self, options: Options, model: LanguageModel, rule: LearningRule) -> None:
        super().__init__(rule)
        self.limit = options.limit

    def edit(self, model: LanguageModel, gradients: Gradients) -> Gradients:
        if not self.limit:
            return gradients
        return {
            name: clip_factor(total_norm([gradient]), self.limit) * gradient
            for name, gradient in gradients.items()
        }
