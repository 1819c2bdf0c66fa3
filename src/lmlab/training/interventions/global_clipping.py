"""Gradient clipping by global norm (Pascanu et al. 2013): the whole gradient's norm is limited.

    g * min(1, limit / |g|)        with |g| over all of the model's parameters together

`train.clip` does the same after all interventions; this one can stand before another. The gradients
of a rule's own parameters are scaled by the same factor, as `train.clip` does. Limit 0 turns it
off. Cost: a few operations on each gradient.
"""

from pydantic import Field

from lmlab.core.params import Params
from lmlab.model.models.base import LanguageModel
from lmlab.training.interventions.base import (
    OWN_PREFIX,
    GradientEdit,
    Gradients,
    clip_factor,
    total_norm,
)
from lmlab.training.learning_rules.base import LearningRule


class Options(Params):
    """Options of the intervention."""

    limit: float = Field(ge=0)


class GlobalClipping(GradientEdit):
    """It has no state."""

    neutral = {"limit": 0.0}

    def __init__(self, options: Options, model: LanguageModel, rule: LearningRule) -> None:
        super().__init__(rule)
        self.limit = options.limit

    def edit(self, model: LanguageModel, gradients: Gradients) -> Gradients:
        if not self.limit:
            return gradients
        of_model = [
            gradient for name, gradient in gradients.items() if not name.startswith(OWN_PREFIX)
        ]
        factor = clip_factor(total_norm(of_model), self.limit)
        return {name: factor * gradient for name, gradient in gradients.items()}
