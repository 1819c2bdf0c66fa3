"""Adaptive gradient clipping (Brock et al. 2021): no unit's gradient may be long beside the unit's
own weights.
"""

import torch
from pydantic import Field
from torch import Tensor

from lmlab.core.params import Params
from lmlab.model.models.base import LanguageModel
from lmlab.training.interventions.base import GradientEdit, Gradients, shortening
from lmlab.training.learning_rules.base import LearningRule

SMALLEST_NORM = 0.001
"""Weights shorter than this count as this long: otherwise those that start at zero could never
move.
"""


class Options(Params):
    """Options of the intervention."""

    limit: float = Field(ge=0)


class AdaptiveClipping(GradientEdit):
    """Row by row (a vector is one row), the gradient's norm becomes min(norm, limit * norm of the
    weights).

    Readouts' weights, the model's and a rule's own, are left alone, as the authors do with the last
    layer. Limit 0: none.
    """

    neutral = {"limit": 0.0}

    def __init__(self, options: Options, model: LanguageModel, rule: LearningRule) -> None:
        super().__init__(rule)
        self.limit = options.limit

    def edit(self, model: LanguageModel, gradients: Gradients) -> Gradients:
        if not self.limit:
            return gradients
        weights = self.weights(model)
        readouts = [
            *(model.readout.parameters() if model.readout else ()),
            *self.own_groups(model).get("readout", []),
        ]
        alone = {id(parameter) for parameter in readouts}
        return {
            name: gradient if id(weights[name]) in alone else self._clipped(gradient, weights[name])
            for name, gradient in gradients.items()
        }

    def _clipped(self, gradient: Tensor, weight: Tensor) -> Tensor:
        allowed = self.limit * _row_norms(weight).clamp(min=SMALLEST_NORM)
        return gradient * shortening(_row_norms(gradient) / allowed, 1.0)


def _row_norms(tensor: Tensor) -> Tensor:
    across = tuple(range(1, tensor.ndim)) if tensor.ndim > 1 else (0,)
    return torch.linalg.vector_norm(tensor, dim=across, keepdim=True)
