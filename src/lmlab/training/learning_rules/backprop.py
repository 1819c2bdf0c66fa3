"""Backpropagation (Rumelhart, Hinton & Williams 1986): the exact gradient, by the chain rule.

    grad_W = dL/dW        for the mean cross-entropy L of the next tokens

Autograd's reverse mode computes it. Cost: a forward and a backward pass, about three times the
FLOPs of the forward pass, and memory for every activation in between.
"""

import torch
from torch import Tensor

from lmlab.core.params import Params
from lmlab.model.models.base import LanguageModel, next_token_loss
from lmlab.training.learning_rules.base import LearningRule


class Options(Params):
    """This rule has none."""


class Backprop(LearningRule):
    """The baseline of every other rule. It has no state."""

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
