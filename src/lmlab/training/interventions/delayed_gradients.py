"""Delayed gradients (Recht et al. 2011, for asynchronous training): each step is taken by what the
loss said steps ago.

On a loss of curvature h gradient descent at rate r is stable while r h < 2 sin(pi / (2 (2 delay +
1))).
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
    """The gradients of `delay` steps ago; in the first steps none, so that nothing moves.

    Kept with its state, a copy of the gradients for each step waited. (Within `sample_clipping`
    every window counts as a step.)
    """

    neutral = {"delay": 0}
    calls: Tensor

    def __init__(self, options: Options, model: LanguageModel, rule: LearningRule) -> None:
        super().__init__(rule)
        self.delay = options.delay
        self.register_buffer("calls", torch.zeros((), dtype=torch.long))
        for name, parameter in self.weights(model).items():
            self.register_buffer(
                self._waiting(name), parameter.new_zeros(self.delay, *parameter.shape)
            )
            self.register_buffer(
                self._there(name),
                torch.zeros(self.delay, dtype=torch.bool, device=parameter.device),
            )

    def edit(self, model: LanguageModel, gradients: Gradients) -> Gradients:
        if not self.delay:
            return gradients
        place = int(self.calls) % self.delay
        old: Gradients = {}
        for name in self.weights(model):
            waiting, there = (
                self.get_buffer(self._waiting(name)),
                self.get_buffer(self._there(name)),
            )
            if there[place]:
                old[name] = waiting[place].clone()
            there[place] = name in gradients
            if name in gradients:
                waiting[place] = gradients[name]
        self.calls += 1
        return old

    @staticmethod
    def _waiting(name: str) -> str:
        return "waiting/" + name.replace(".", "/")

    @staticmethod
    def _there(name: str) -> str:
        return "there/" + name.replace(".", "/")
