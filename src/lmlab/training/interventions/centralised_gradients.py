"""Gradient centralisation (Yong et al. 2020): what all weights into one unit have in common is
taken out of the gradient.
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
    """g - strength * (mean of its row), for every tensor of two or more dimensions; a row is what
    leads into one output.

    The rows of an embedding are tokens' vectors, each centred as well. At strength 1 doing it twice
    changes nothing more.
    """

    neutral = {"strength": 0.0}

    def __init__(self, options: Options, model: LanguageModel, rule: LearningRule) -> None:
        super().__init__(rule)
        self.strength = options.strength

    def edit(self, model: LanguageModel, gradients: Gradients) -> Gradients:
        if not self.strength:
            return gradients
        return {
            name: gradient
            - self.strength * gradient.mean(dim=tuple(range(1, gradient.ndim)), keepdim=True)
            if gradient.ndim > 1
            else gradient
            for name, gradient in gradients.items()
        }
