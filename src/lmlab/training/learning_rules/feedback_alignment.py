"""Feedback alignment (Lillicrap et al. 2016): errors go down through fixed random weights instead
of the forward ones.

Behind every linear map and convolution, the gradient at the input is grad_y B in place of grad_y W;
B is drawn once, as large as W is at first, and never learns. It is W that comes to agree with B.
Exact stay: the gradients of W and bias for the grad_y that arrives (so those of the readout
altogether), and whatever is no linear map: norms, activations, gates, look-ups, attention's
products, residual connections, and products that a layer writes out without torch's `linear` (as
dynamic hyper-connections do to weigh their streams). It costs what backprop does, and as much
memory again as the maps' weights.
"""

from pydantic import Field
from torch import Tensor

from lmlab.core.params import Params
from lmlab.model.models.base import LanguageModel
from lmlab.training.learning_rules._cutting import backprop_with, drawn_like, key, linear_weights
from lmlab.training.learning_rules.base import LearningRule


class Options(Params):
    """Options of the rule."""

    feedback_scale: float = Field(gt=0)


class FeedbackAlignment(LearningRule):
    """Its state is one fixed B for each W, of the same shape and name."""

    backward = True

    def __init__(self, options: Options, model: LanguageModel) -> None:
        super().__init__()
        for name, weight in linear_weights(model).items():
            self.register_buffer(key(name), drawn_like(weight, options.feedback_scale))

    def assign_gradients(
        self, model: LanguageModel, tokens_BT: Tensor, targets_BT: Tensor
    ) -> Tensor:
        return backprop_with(
            lambda call, grad_y: call.back(grad_y, self.get_buffer(key(call.name))),
            model,
            tokens_BT,
            targets_BT,
        )
