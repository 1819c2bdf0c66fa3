"""Clipping of the whole gradient (Pascanu et al. 2013): too long a one is made shorter, in the same
direction.

`train.clip` does the same at the end of everything; as an intervention it can stand before another.
"""

from pydantic import Field

from lmlab.core.params import Params
from lmlab.model.models.base import LanguageModel
from lmlab.training.interventions.base import OWN, GradientEdit, Gradients, norm, shortening
from lmlab.training.learning_rules.base import LearningRule


class Options(Params):
    """Options of the intervention."""

    limit: float = Field(ge=0)


class GlobalClipping(GradientEdit):
    """The norm of all the model's gradients together becomes min(norm, limit). Limit 0: none.

    The gradients of a rule's own parameters are made shorter by the same factor, as by
    `train.clip`.
    """

    neutral = {"limit": 0.0}

    def __init__(self, options: Options, model: LanguageModel, rule: LearningRule) -> None:
        super().__init__(rule)
        self.limit = options.limit

    def edit(self, model: LanguageModel, gradients: Gradients) -> Gradients:
        if not self.limit:
            return gradients
        of_model = [gradient for name, gradient in gradients.items() if not name.startswith(OWN)]
        factor = shortening(norm(of_model), self.limit)
        return {name: factor * gradient for name, gradient in gradients.items()}
