"""Clipping window by window (Abadi et al. 2016, without their noise): no single text decides a
step.
"""

import torch
from pydantic import Field
from torch import Tensor

from lmlab.core.params import Params
from lmlab.model import noise
from lmlab.model.models.base import LanguageModel
from lmlab.training.interventions.base import Gradients, Intervention, give, norm, shortening, take
from lmlab.training.learning_rules.base import LearningRule, Pieces


class Options(Params):
    """Options of the intervention."""

    limit: float = Field(ge=0)


class SampleClipping(Intervention):
    """The mean over the windows of each one's gradient, shortened to the limit. Limit 0: none.

    The rule is asked for one window after another, so a batch of B costs B small calls instead of a
    large one, and whatever stands between it and the rule sees single windows. A rule's own
    gradients are shortened by the same factors.
    """

    neutral = {"limit": 0.0}

    def __init__(self, options: Options, model: LanguageModel, rule: LearningRule) -> None:
        super().__init__(rule)
        self.limit = options.limit
        self.final_in_backward = rule.final_in_backward and not self.limit

    def accumulate_gradients(self, model: LanguageModel, pieces: Pieces) -> Tensor:
        if not self.limit:
            return self.rule.accumulate_gradients(model, pieces)
        windows = [
            window
            for piece in pieces
            for window in zip(*(batch_BT.unsqueeze(1) for batch_BT in piece), strict=True)
        ]
        learners = (model, self.rule)
        before = [take(learner) for learner in learners]
        sums: list[Gradients] = [{}, {}]
        losses = []
        for number, window in enumerate(windows):
            with noise.within("window", number):
                losses.append(self.rule.accumulate_gradients(model, [window]))
            found = [take(learner) for learner in learners]
            factor = shortening(norm(list(found[0].values())), self.limit) / len(windows)
            for total, gradients in zip(sums, found, strict=True):
                for name, gradient in gradients.items():
                    total[name] = total.get(name, 0) + factor * gradient
        for learner, earlier, total in zip(learners, before, sums, strict=True):
            give(learner, earlier)
            give(learner, total)
        return torch.stack(losses).mean()
