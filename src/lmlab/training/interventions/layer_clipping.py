"""Clipping tensor by tensor: one layer's outburst does not shorten the steps of the others."""

from pydantic import Field

from lmlab.core.params import Params
from lmlab.model.models.base import LanguageModel
from lmlab.training.interventions.base import GradientEdit, Gradients, norm, shortening
from lmlab.training.learning_rules.base import LearningRule


class Options(Params):
    """Options of the intervention."""

    limit: float = Field(ge=0)


class LayerClipping(GradientEdit):
    """The norm of every parameter's gradient becomes min(norm, limit). Limit 0: none."""

    neutral = {"limit": 0.0}

    def __init__(self, options: Options, model: LanguageModel, rule: LearningRule) -> None:
        super().__init__(rule)
        self.limit = options.limit

    def edit(self, model: LanguageModel, gradients: Gradients) -> Gradients:
        if not self.limit:
            return gradients
        return {
            name: shortening(norm([gradient]), self.limit) * gradient
            for name, gradient in gradients.items()
        }
