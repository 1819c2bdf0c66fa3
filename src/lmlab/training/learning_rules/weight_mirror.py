"""Weight mirrors (Akrout et al. 2019): feedback weights find the forward ones by watching what the
maps make of noise.

Errors go down as in feedback alignment, grad_y B in place of grad_y W. Every so many steps each
linear map, on its own, is given white noise x and answers y = W x; then B <- (1 - decay) B + rate *
(mean of y x^T over the noise), whose expectation is W. So B follows W (with rate = decay, in size
too) though no weight is copied, only activities multiplied. Exact stay the gradients of W and bias
for the grad_y that arrives, and whatever is no call of torch's `linear` or `conv1d`. It costs what
backprop does, two products with `samples` rows for each map and noise pass, and as much memory
again as the maps' weights.
"""

import torch
from pydantic import Field
from torch import Tensor

from lmlab.core.params import Params
from lmlab.model import noise
from lmlab.model.models.base import LanguageModel
from lmlab.training.learning_rules._cutting import backprop_with, drawn_like, key, linear_weights
from lmlab.training.learning_rules.base import LearningRule, Pieces, in_pieces


class Options(Params):
    """Options of the rule."""

    every: int = Field(ge=1)
    samples: int = Field(ge=1)
    rate: float = Field(gt=0)
    decay: float = Field(ge=0, lt=1)


class WeightMirror(LearningRule):
    """Its state is one B for each W, of the same shape and name, which it moves itself, and the
    number of steps so far.
    """

    backward = True

    def __init__(self, options: Options, model: LanguageModel) -> None:
        super().__init__()
        self.options = options
        self.steps: Tensor
        self.register_buffer("steps", torch.zeros((), dtype=torch.long))
        for name, weight in linear_weights(model).items():
            self.register_buffer(key(name), drawn_like(weight))

    def assign_gradients(
        self, model: LanguageModel, tokens_BT: Tensor, targets_BT: Tensor
    ) -> Tensor:
        return self.accumulate_gradients(model, [(tokens_BT, targets_BT)])

    def accumulate_gradients(self, model: LanguageModel, pieces: Pieces) -> Tensor:
        if int(self.steps) % self.options.every == 0:
            self._mirror(model)
        self.steps += 1
        return in_pieces(self._assign, [model, self], model, pieces)

    def _assign(self, model: LanguageModel, tokens_BT: Tensor, targets_BT: Tensor) -> Tensor:
        return backprop_with(
            lambda call, grad_y: call.back(grad_y, self.get_buffer(key(call.name))),
            model,
            tokens_BT,
            targets_BT,
        )

    @torch.no_grad()
    def _mirror(self, model: LanguageModel) -> None:
        """One noise pass. A convolution is taken for the linear map of all that one position of its
        output sees.
        """
        samples = self.options.samples
        for name, weight in linear_weights(model).items():
            matrix = weight.flatten(1)
            with torch.autocast(weight.device.type, enabled=False):
                white = noise.normal(matrix.new_empty(samples, matrix.shape[1]), name)
                seen = (white @ matrix.T).T @ white / samples
            feedback = self.get_buffer(key(name)).mul_(1 - self.options.decay)
            feedback.add_(seen.view_as(feedback), alpha=self.options.rate)
