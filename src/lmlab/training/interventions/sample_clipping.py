"""Per-sample clipping (Abadi et al. 2016, without their noise): every window's gradient is clipped.

    mean over windows i of g_i * min(1, limit / |g_i|)

The norm is that of all of the model's gradients together; those of a rule's own parameters are
scaled by the same factors. The rule, and every intervention between it and this one, is called with
one window after another. Limit 0 turns it off. Cost: B small calls of the rule instead of a large
one.
"""

import torch
from pydantic import Field
from torch import Tensor

from lmlab.core.params import Params
from lmlab.model import noise
from lmlab.model.models.base import LanguageModel
from lmlab.training.interventions.base import (
    Gradients,
    Intervention,
    add_gradients,
    clip_factor,
    take_gradients,
    total_norm,
)
from lmlab.training.learning_rules.base import (
    LearningRule,
    MicroBatches,
    mean_over_micro_batches,
)


class Options(Params):
    """Options of the intervention."""

    limit: float = Field(ge=0)


class SampleClipping(Intervention):
    """It has no state."""

    neutral = {"limit": 0.0}

    def __init__(self, options: Options, model: LanguageModel, rule: LearningRule) -> None:
        super().__init__(rule)
        self.limit = options.limit
        self.acts_on_windows = self.limit > 0
        self.final_in_backward = rule.final_in_backward and not self.limit

    def accumulate_gradients(self, model: LanguageModel, micro_batches: MicroBatches) -> Tensor:
        if not self.limit:
            return self.rule.accumulate_gradients(model, micro_batches)
        return mean_over_micro_batches(self._assign, [model, self.rule], model, micro_batches)

    def _assign(self, model: LanguageModel, tokens_BT: Tensor, targets_BT: Tensor) -> Tensor:
        """Add the mean of the clipped gradients of a micro-batch's windows; return the loss."""
        count = len(tokens_BT)
        windows = list(zip(tokens_BT.chunk(count), targets_BT.chunk(count), strict=True))
        model_before = take_gradients(model)
        own_before = take_gradients(self.rule)
        model_sum: Gradients = {}
        own_sum: Gradients = {}
        losses = []
        for number, window in enumerate(windows):
            with noise.within("window", number):
                losses.append(self.rule.accumulate_gradients(model, [window]))
            of_model = take_gradients(model)
            own = take_gradients(self.rule)
            factor = clip_factor(total_norm(list(of_model.values())), self.limit) / count
            _add_scaled(model_sum, of_model, factor)
            _add_scaled(own_sum, own, factor)
        add_gradients(model, model_before)
        add_gradients(model, model_sum)
        add_gradients(self.rule, own_before)
        add_gradients(self.rule, own_sum)
        return torch.stack(losses).mean()


def _add_scaled(total: Gradients, gradients: Gradients, factor: Tensor) -> None:
    for name, gradient in gradients.items():
        total[name] = total.get(name, 0) + factor * gradient
