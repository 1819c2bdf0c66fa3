"""Feedback alignment (Lillicrap et al. 2016): errors travel back through fixed random weights.

    grad_x = grad_y B        in place of grad_y W, at every linear map and convolution y = W x

B is drawn once, `feedback_scale` times as large as W is then, and never changes; training brings W
into alignment with B. The gradients of W and bias are exact for the grad_y that arrives, so the
readout's are exact altogether. Exact too is everything that is no call of torch's `linear` or
`conv1d`: norms, activations, gates, look-ups, attention's products, residual connections, and
products that a layer writes out (as dynamic hyper-connections do). Cost: that of backprop, and the
linear maps' weights once more in memory.
"""

from pydantic import Field
from torch import Tensor

from lmlab.core.params import Params
from lmlab.model.models.base import LanguageModel
from lmlab.training.learning_rules._feedback import backprop_with, draw_feedback, state_name
from lmlab.training.learning_rules._linear_maps import LinearMapCall, linear_weights
from lmlab.training.learning_rules.base import LearningRule


class Options(Params):
    """Options of the rule."""

    feedback_scale: float = Field(gt=0)


class FeedbackAlignment(LearningRule):
    """Its state is one fixed B for each W, in W's shape and under its name."""

    backward = True

    def __init__(self, options: Options, model: LanguageModel) -> None:
        super().__init__()
        for name, weight in linear_weights(model).items():
            feedback = draw_feedback(weight, options.feedback_scale)
            self.register_buffer(state_name(name), feedback)

    def assign_gradients(
        self, model: LanguageModel, tokens_BT: Tensor, targets_BT: Tensor
    ) -> Tensor:
        return backprop_with(self._input_gradient, model, tokens_BT, targets_BT)

    def _input_gradient(self, call: LinearMapCall, grad_y: Tensor) -> Tensor:
        return call.input_gradient(grad_y, self.get_buffer(state_name(call.name)))
