"""Sign symmetry (Liao et al. 2016; Moskovitz et al. 2018): feedback shares only the weights' signs.

    grad_x = grad_y (sign(W) * |B|)        in place of grad_y W, at every linear map and convolution

Signs are those that W has now; the magnitudes |B| are fixed at the start, either `drawn` at random
or `uniform`, all the mean of |W|. The gradients of W and bias are exact for the grad_y that
arrives, so the readout's are exact altogether, as is everything that is no call of torch's `linear`
or `conv1d`. Cost: that of backprop, and the linear maps' weights once more in memory.
"""

from typing import Literal

import torch
from torch import Tensor

from lmlab.core.params import Params
from lmlab.model.models.base import LanguageModel
from lmlab.training.learning_rules._feedback import backprop_with, draw_feedback, state_name
from lmlab.training.learning_rules._linear_maps import LinearMapCall, linear_weights
from lmlab.training.learning_rules.base import LearningRule


class Options(Params):
    """Options of the rule."""

    magnitudes: Literal["drawn", "uniform"]


class SignSymmetry(LearningRule):
    """Its state is one fixed |B| for each W, in W's shape and under its name."""

    backward = True

    def __init__(self, options: Options, model: LanguageModel) -> None:
        super().__init__()
        for name, weight in linear_weights(model).items():
            magnitudes = draw_feedback(
                weight
            ).abs()  # drawn either way: options change no other draw
            if options.magnitudes == "uniform":
                sizes = weight.detach().abs()
                magnitudes = torch.ones_like(sizes) * sizes.mean()
            self.register_buffer(state_name(name), magnitudes)

    def assign_gradients(
        self, model: LanguageModel, tokens_BT: Tensor, targets_BT: Tensor
    ) -> Tensor:
        return backprop_with(self._input_gradient, model, tokens_BT, targets_BT)

    def _input_gradient(self, call: LinearMapCall, grad_y: Tensor) -> Tensor:
        magnitudes = self.get_buffer(state_name(call.name))
        return call.input_gradient(grad_y, call.weight.sign() * magnitudes)
