"""Backpropagation (Rumelhart, Hinton & Williams 1986): the exact gradient, by reverse-mode
differentiation.
"""

import torch
from torch import Tensor

from lmlab.core.params import Params
from lmlab.model.models.base import LanguageModel, next_token_loss
from lmlab.training.learning_rules.base import LearningRule


class Options(Params):
    """This rule has none."""


class Backprop(LearningRule):
    """The yardstick that every other rule is held against. It has no state."""

    backward = True
    final_in_backward = True
    compiles = True

    def __init__(self, options: Options, model: LanguageModel) -> None:
        super().__init__()

    def assign_gradients(
        self, model: LanguageModel, tokens_BT: Tensor, targets_BT: Tensor
    ) -> Tensor:
        loss = next_token_loss(model(tokens_BT), targets_BT)
        torch.autograd.backward(loss)
        return loss.detach()
