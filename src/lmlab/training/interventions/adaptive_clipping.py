"""Adaptive gradient clipping (Brock et al. 2021): a unit's gradient is limited by its weights.

    g_row * min(1, limit * max(|W_row|, 0.001) / |g_row|)

Rows are what leads into one output unit; a vector is one row. Readouts' weights, the model's and a
rule's own, are left alone, as the authors do with the last layer. Limit 0 turns it off. Cost: a few
operations on each gradient.
"""

import torch
from pydantic import Field
from torch import Tensor

from lmlab.core.params import Params
from lmlab.model.models.base import LanguageModel
from lmlab.training.interventions.base import GradientEdit, Gradients, clip_factor
from lmlab.training.learning_rules.base import LearningRule

SMALLEST_NORM = 0.001
"""Least norm that weights count with: otherwise those that start at zero could never move."""


class Options(Params):
    """Options of the intervention."""

    limit: float = Field(ge=0)


class AdaptiveClipping(GradientEdit):
    """It has no state."""

    neutral = {"limit": 0.0}

    def __init__(self, options: Options, model: LanguageModel, rule: LearningRule) -> None:
        super().__init__(rule)
        self.limit = options.limit

    def edit(self, model: LanguageModel, gradients: Gradients) -> Gradients:
        if not self.limit:
            return gradients
        model_readout = model.readout.parameters() if model.readout else ()
        own_readout = self.own_groups(model).get("readout", [])
        exempt_ids = {id(parameter) for parameter in [*model_readout, *own_readout]}
        weights = self.weights(model)
        edited: Gradients = {}
        for name, gradient in gradients.items():
            weight = weights[name]
            exempt = id(weight) in exempt_ids
            edited[name] = gradient if exempt else self._clipped(gradient, weight)
        return edited

    def _clipped(self, gradient: Tensor, weight: Tensor) -> Tensor:
        limits = self.limit * _row_norms(weight).clamp(min=SMALLEST_NORM)
        return gradient * clip_factor(_row_norms(gradient) / limits, 1.0)


def _row_norms(tensor: Tensor) -> Tensor:
    dimensions = tuple(range(1, tensor.ndim)) if tensor.ndim > 1 else (0,)
    return torch.linalg.vector_norm(tensor, dim=dimensions, keepdim=True)
