"""Gradient centralisation (Yong et al. 2020): a unit's gradient gets mean zero over its inputs.

    g - strength * mean(g_row)        for every tensor of two or more dimensions

A row is what leads into one output unit; an embedding's rows are tokens' vectors, each centred as
well. At strength 1, doing it twice is the same as doing it once. Strength 0 turns it off. Cost: a
few operations on each gradient.
"""

from pydantic import Field

from lmlab.core.params import Params
from lmlab.model.models.base import LanguageModel
from lmlab.training.interventions.base import GradientEdit, Gradients
from lmlab.training.learning_rules.base import LearningRule


class Options(Params):
    """Options of the intervention."""

    strength: float = Field(ge=0, le=1)


class CentralisedGradients(GradientEdit):
    """It has no state."""

    neutral = {"strength": 0.0}

    def __init__(self, options: Options, model: LanguageModel, rule: LearningRule) -> None:
        super().__init__(rule)
        self.strength = options.strength

    def edit(self, model: LanguageModel, gradients: Gradients) -> Gradients:
        if not self.strength:
            return gradients
        edited: Gradients = {}
        for name, gradient in gradients.items():
            if gradient.ndim > 1:
                row_means = gradient.mean(dim=tuple(range(1, gradient.ndim)), keepdim=True)
                gradient = gradient - self.strength * row_means
            edited[name] = gradient
        return edited
