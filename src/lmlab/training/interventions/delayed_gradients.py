"""Delayed gradients (Recht et al. 2011, for asynchronous training): steps use earlier gradients.

    w[t + 1] = w[t] - rate * g[t - delay]

In the first `delay` steps there are no gradients, and nothing moves. On a loss of curvature h,
plain gradient descent is stable while rate * h < 2 sin(pi / (2 (2 delay + 1))). Delay 0 turns it
off. Within `sample_clipping` every window counts as a step. Cost: a copy of all gradients for each
step of delay.
"""

import torch
from pydantic import Field
from torch import Tensor

from lmlab.core.params import Params
from lmlab.model.models.base import LanguageModel
from lmlab.training.interventions.base import GradientEdit, Gradients
from lmlab.training.learning_rules.base import LearningRule


class Options(Params):
    """Options of the intervention."""

    delay: int = Field(ge=0)


class DelayedGradients(GradientEdit):
    """Its state is a ring buffer of gradients for each parameter, and the number of calls."""

    remembers = True
    neutral = {"delay": 0}
    calls: Tensor

    def __init__(self, options: Options, model: LanguageModel, rule: LearningRule) -> None:
        super().__init__(rule)
        self.delay = options.delay
        self.register_buffer("calls", torch.zeros((), dtype=torch.long))
        for name, parameter in self.weights(model).items():
            gradients = parameter.new_zeros(self.delay, *parameter.shape)
            is_filled = torch.zeros(self.delay, dtype=torch.bool, device=parameter.device)
            self.register_buffer(_gradients_name(name), gradients)
            self.register_buffer(_filled_name(name), is_filled)

    def edit(self, model: LanguageModel, gradients: Gradients) -> Gradients:
        if not self.delay:
            return gradients
        slot = int(self.calls) % self.delay
        delayed: Gradients = {}
        for name in self.weights(model):
            waiting = self.get_buffer(_gradients_name(name))
            is_filled = self.get_buffer(_filled_name(name))
            if is_filled[slot]:
                delayed[name] = waiting[slot].clone()
            is_filled[slot] = name in gradients
            if name in gradients:
                waiting[slot] = gradients[name]
        self.calls += 1
        return delayed


def _gradients_name(name: str) -> str:
    return "waiting/" + name.replace(".", "/")


def _filled_name(name: str) -> str:
    """Of the buffer that says in which slots of a parameter's ring buffer a gradient waits."""
    return "there/" + name.replace(".", "/")
