"""Sign symmetry (Liao et al. 2016; Moskovitz et al. 2018): errors go down through weights that
share only the forward signs.

Behind every linear map and convolution, the gradient at the input is grad_y B in place of grad_y W,
with B = sign(W) |B|: signs as W has them now, magnitudes fixed at the start. Exact stay the
gradients of W and bias for the grad_y that arrives (so those of the readout altogether), and
whatever is no call of torch's `linear` or `conv1d`. It costs what backprop does, and as much memory
again as the maps' weights.
"""

from typing import Literal

import torch
from torch import Tensor

from lmlab.core.params import Params
from lmlab.model.models.base import LanguageModel
from lmlab.training.learning_rules._cutting import backprop_with, drawn_like, key, linear_weights
from lmlab.training.learning_rules.base import LearningRule


class Options(Params):
    """Options of the rule."""

    magnitudes: Literal["drawn", "uniform"]


class SignSymmetry(LearningRule):
    """Its state is one fixed |B| for each W, of the same shape and name."""

    backward = True

    def __init__(self, options: Options, model: LanguageModel) -> None:
        super().__init__()
        for name, weight in linear_weights(model).items():
            drawn, size = drawn_like(weight), weight.detach().abs()
            magnitudes = (
                drawn.abs()
                if options.magnitudes == "drawn"
                else torch.ones_like(size) * size.mean()
            )
            self.register_buffer(key(name), magnitudes)

    def assign_gradients(
        self, model: LanguageModel, tokens_BT: Tensor, targets_BT: Tensor
    ) -> Tensor:
        return backprop_with(
            lambda call, grad_y: call.back(
                grad_y, call.weight.sign() * self.get_buffer(key(call.name))
            ),
            model,
            tokens_BT,
            targets_BT,
        )
