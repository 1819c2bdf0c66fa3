"""Sign gradients (Bernstein et al. 2018, "signSGD"): only each number's sign counts, not its size.

    (1 - strength) g + strength * mean(|g|) * sign(g)        for every parameter's gradient g

The mean absolute value keeps the gradient's scale. With SGD, strength 1 is sign descent at that
scale; Adam with both betas 0 takes the same signs. Strength 0 turns it off. Cost: a few operations
on each gradient.
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
    """It has no state."""

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
