"""Signs for gradients (Bernstein et al. 2018, "signSGD"): every number says only which way, all are
of one size.
"""

from pydantic import Field

from lmlab.core.params import Params
from lmlab.model.models.base import LanguageModel
from lmlab.training.interventions.base import GradientEdit, Gradients
from lmlab.training.learning_rules.base import LearningRule


class Options(Params):
    """Options of the intervention."""

    strength: float = Field(ge=0, le=1)


class SignGradients(GradientEdit):
    """(1 - strength) g + strength m sign(g), with m the mean size of the numbers in the tensor, so
    that g keeps its scale.

    With SGD at strength 1 this is sign descent at each tensor's mean size; Adam with both betas 0
    takes the same signs.
    """

    neutral = {"strength": 0.0}

    def __init__(self, options: Options, model: LanguageModel, rule: LearningRule) -> None:
        super().__init__(rule)
        self.strength = options.strength

    def edit(self, model: LanguageModel, gradients: Gradients) -> Gradients:
        if not self.strength:
            return gradients
        return {
            name: gradient.lerp(gradient.abs().mean() * gradient.sign(), self.strength)
            for name, gradient in gradients.items()
        }
