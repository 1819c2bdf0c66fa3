"""Weight mirrors (Akrout et al. 2019): feedback weights estimate W from its response to noise.

    grad_x = grad_y B,    B <- (1 - decay) B + rate * mean(y x^T)    over white noise x, y = W x

Errors travel back through B in place of W, as in feedback alignment. Every `every` steps each
linear map, by itself, is fed `samples` vectors of white noise; the mean of y x^T has expectation W.
So B follows W (with rate = decay, also in size) though no weight is copied: only activities are
multiplied. A convolution counts as the linear map from all that one output position reads. The
gradients of W and bias are exact for the grad_y that arrives, as is everything that is no call of
torch's `linear` or `conv1d`. Cost: that of backprop, two matrix products with `samples` rows for
each map and noise pass, and the linear maps' weights once more in memory.
"""

import torch
from pydantic import Field
from torch import Tensor

from lmlab.core.params import Params
from lmlab.model import noise
from lmlab.model.models.base import LanguageModel
from lmlab.training.learning_rules._feedback import backprop_with, draw_feedback, state_name
from lmlab.training.learning_rules._linear_maps import LinearMapCall, linear_weights
from lmlab.training.learning_rules.base import (
    LearningRule,
    MicroBatches,
    mean_over_micro_batches,
)


class Options(Params):
    """Options of the rule."""

    every: int = Field(ge=1)
    samples: int = Field(ge=1)
    rate: float = Field(gt=0)
    decay: float = Field(ge=0, lt=1)


class WeightMirror(LearningRule):
    """Its state is one B for each W, in W's shape and under its name, and the number of steps.

    It updates B itself; the optimizer does not.
    """

    remembers = True
    backward = True

    def __init__(self, options: Options, model: LanguageModel) -> None:
        super().__init__()
        self.options = options
        self.steps: Tensor
        self.register_buffer("steps", torch.zeros((), dtype=torch.long))
        for name, weight in linear_weights(model).items():
            self.register_buffer(state_name(name), draw_feedback(weight))

    def assign_gradients(
        self, model: LanguageModel, tokens_BT: Tensor, targets_BT: Tensor
    ) -> Tensor:
        return self.accumulate_gradients(model, [(tokens_BT, targets_BT)])

    def accumulate_gradients(self, model: LanguageModel, micro_batches: MicroBatches) -> Tensor:
        if int(self.steps) % self.options.every == 0:
            self._mirror(model)
        self.steps += 1
        return mean_over_micro_batches(self._assign, [model, self], model, micro_batches)

    def _assign(self, model: LanguageModel, tokens_BT: Tensor, targets_BT: Tensor) -> Tensor:
        return backprop_with(self._input_gradient, model, tokens_BT, targets_BT)

    def _input_gradient(self, call: LinearMapCall, grad_y: Tensor) -> Tensor:
        return call.input_gradient(grad_y, self.get_buffer(state_name(call.name)))

    @torch.no_grad()
    def _mirror(self, model: LanguageModel) -> None:
        """One noise pass: move every B towards the estimate of its W."""
        samples = self.options.samples
        for name, weight in linear_weights(model).items():
            matrix_ED = weight.flatten(1)
            with torch.autocast(weight.device.type, enabled=False):
                x_ND = noise.normal(matrix_ED.new_empty(samples, matrix_ED.shape[1]), name)
                y_NE = x_ND @ matrix_ED.T
                estimate_ED = y_NE.T @ x_ND / samples
            feedback = self.get_buffer(state_name(name))
            feedback.mul_(1 - self.options.decay)
            feedback.add_(estimate_ED.view_as(feedback), alpha=self.options.rate)
