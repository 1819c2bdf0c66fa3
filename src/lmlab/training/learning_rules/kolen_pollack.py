"""Kolen-Pollack (Kolen & Pollack 1994; Akrout et al. 2019): feedback weights get W's own updates.

    grad_x = grad_y B,    grad_B = dL/dW + decay B,    grad_W = dL/dW + decay W

Errors travel back through B in place of W, as in feedback alignment, but B gets the same gradient
as W, edited by interventions in the same way, at W's learning rate and in W's optimizer group.
Equal updates keep the initial difference W - B; weight decay shrinks it to zero, and the rule
becomes backprop without ever copying a weight. The decay may be the optimizer's (decoupled, on
matrices alone) or `decay` here. Plain gradient descent multiplies W - B by 1 - learning rate *
decay in each step, or by less decay where `train.clip` scales gradients down. Adam does so only
approximately, since with `decay` the two gradients differ. The gradients of W and bias are exact
for the grad_y that arrives, as is everything that is no call of torch's `linear` or `conv1d`. Cost:
that of backprop, the optimizer's work on B, and in memory the linear maps' weights and optimizer
state once more.
"""

from pydantic import Field
from torch import Tensor, nn

from lmlab.core.params import Params
from lmlab.model.models.base import LanguageModel
from lmlab.training.learning_rules._feedback import backprop_with, draw_feedback, state_name
from lmlab.training.learning_rules._linear_maps import LinearMapCall, linear_weights
from lmlab.training.learning_rules.base import LearningRule, fresh_gradients
from lmlab.training.optimizers.base import Groups, follow, parameter_groups


class Options(Params):
    """Options of the rule."""

    decay: float = Field(ge=0)


class KolenPollack(LearningRule):
    """Its own parameters are one B for each W, in W's shape and under its name."""

    backward = True

    def __init__(self, options: Options, model: LanguageModel) -> None:
        super().__init__()
        self.decay = options.decay
        for name, weight in linear_weights(model).items():
            self.register_parameter(state_name(name), nn.Parameter(draw_feedback(weight)))

    def leaders(self, model: LanguageModel) -> dict[str, str]:
        return {state_name(name): name for name in linear_weights(model)}

    def own_groups(self, model: LanguageModel) -> Groups:
        feedback_of: dict[int, nn.Parameter] = {}
        for name, weight in linear_weights(model).items():
            feedback = self._feedback(name)
            follow(feedback, weight)
            feedback_of[id(weight)] = feedback
        groups: Groups = {}
        for group_name, parameters in parameter_groups(model).items():
            own = [feedback_of[id(p)] for p in parameters if id(p) in feedback_of]
            if own:
                groups[group_name] = own
        return groups

    def assign_gradients(
        self, model: LanguageModel, tokens_BT: Tensor, targets_BT: Tensor
    ) -> Tensor:
        # the feedback gets what this call gives the weights, without what was in p.grad before
        with fresh_gradients([*model.parameters(), *self.parameters()]):
            loss = backprop_with(self._input_gradient, model, tokens_BT, targets_BT)
            for name, weight in linear_weights(model).items():
                if weight.grad is None:
                    continue
                feedback = self._feedback(name)
                feedback.grad = weight.grad.add(feedback.detach(), alpha=self.decay)
                weight.grad.add_(weight.detach(), alpha=self.decay)
        return loss

    def _feedback(self, name: str) -> nn.Parameter:
        return self.get_parameter(state_name(name))

    def _input_gradient(self, call: LinearMapCall, grad_y: Tensor) -> Tensor:
        return call.input_gradient(grad_y, self._feedback(call.name))
