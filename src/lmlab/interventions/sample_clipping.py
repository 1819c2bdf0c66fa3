"""Clipping window by window (Abadi et al. 2016, without their noise): no single text decides a step."""

import torch
from pydantic import Field
from torch import Tensor

from lmlab.interventions.base import Gradients, Intervention, give, norm, shortening, take
from lmlab.learning_rules.base import LearningRule
from lmlab.models.base import LanguageModel
from lmlab.params import Params


class Options(Params):
    """Options of the intervention."""

    limit: float = Field(ge=0)


class SampleClipping(Intervention):
    """The mean over the windows of each one's gradient, shortened to the limit. Limit 0: none.

    The rule is asked for one window after another, so a batch of B costs B small calls instead of a large one.
    """

    neutral = {"limit": 0.0}

    def __init__(self, options: Options, model: LanguageModel, rule: LearningRule) -> None:
        super().__init__(rule)
        self.limit = options.limit
        self.final_in_backward = rule.final_in_backward and not self.limit

    def assign_gradients(self, model: LanguageModel, tokens_BT: Tensor, targets_BT: Tensor) -> Tensor:
        if not self.limit:
            return self.rule.assign_gradients(model, tokens_BT, targets_BT)
        before, own_before = take(model), take(self.rule)
        of_model: Gradients = {}
        losses = []
        for window, target in zip(tokens_BT[:, None], targets_BT[:, None], strict=True):
            losses.append(self.rule.assign_gradients(model, window, target))
            found = take(model)
            factor = shortening(norm(list(found.values())), self.limit) / len(tokens_BT)
            for name, gradient in found.items():
                of_model[name] = of_model.get(name, 0) + factor * gradient
        own = {name: gradient / len(tokens_BT) for name, gradient in take(self.rule).items()}
        give(model, before)
        give(model, of_model)
        give(self.rule, own_before)
        give(self.rule, own)
        return torch.stack(losses).mean()
