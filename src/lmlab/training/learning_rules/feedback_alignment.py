"""Feedback alignment (Lillicrap et al. 2016): errors travel back through fixed random weights.

    grad_x = grad_y B        in place of grad_y W, at every linear map and convolution y = W x

B is drawn once from a normal distribution whose RMS is `feedback_scale` times that of the initial
W, and never changes; training tends to align W with B. The gradients of W and bias are exact for
the grad_y that arrives, so those of an untied output head are fully exact. Everything that is no
call of torch's `linear` or `conv1d` keeps its exact gradient as well: norms, activations, gates,
look-ups, attention's products, residual connections, and explicit matrix products (as in dynamic
hyper-connections). Cost: that of backprop, plus memory for one copy of the linear maps' weights.
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
    """Its state is one fixed B for each W, of its shape, under its name with `/` for `.`."""

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
