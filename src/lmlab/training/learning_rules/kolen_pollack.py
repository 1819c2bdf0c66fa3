"""Kolen-Pollack (Kolen & Pollack 1994; Akrout et al. 2019): feedback weights learn as the forward
ones do, and so meet them.

Errors go down as in feedback alignment, grad_y B in place of grad_y W, but B is given W's own
gradient, with whatever interventions do to it, and has W's learning rate in the same group of the
optimizer. Both are moved alike, so the difference they began with stays; with decay it shrinks to
nothing, and the rule becomes backprop without ever copying a weight. That decay may be the
optimizer's (decoupled, on matrices alone) or `decay` here, which is in the gradients: plain
gradient descent then shrinks W - B by the factor 1 - rate * decay a step, less decay where
`train.clip` shortens gradients. Adam does not do so exactly, since the two gradients are then no
longer the same. Exact stay the gradients of W and bias for the grad_y that arrives, and whatever is
no call of torch's `linear` or `conv1d`. It costs what backprop does, the optimizer's work on B, and
as much memory again as the maps' weights and what the optimizer keeps of them.
"""

from pydantic import Field
from torch import Tensor, nn

from lmlab.core.params import Params
from lmlab.model.models.base import LanguageModel
from lmlab.training.learning_rules._cutting import backprop_with, drawn_like, key, linear_weights
from lmlab.training.learning_rules.base import LearningRule, gradients_apart
from lmlab.training.optimizers.base import Groups, follow, parameter_groups


class Options(Params):
    """Options of the rule."""

    decay: float = Field(ge=0)


class KolenPollack(LearningRule):
    """Its own parameters are one B for each W, of the same shape and name."""

    backward = True

    def __init__(self, options: Options, model: LanguageModel) -> None:
        super().__init__()
        self.decay = options.decay
        for name, weight in linear_weights(model).items():
            self.register_parameter(key(name), nn.Parameter(drawn_like(weight)))

    def leaders(self, model: LanguageModel) -> dict[str, str]:
        return {key(name): name for name in linear_weights(model)}

    def own_groups(self, model: LanguageModel) -> Groups:
        feedback = {
            id(weight): self.get_parameter(key(name))
            for name, weight in linear_weights(model).items()
        }
        for weight in linear_weights(model).values():
            follow(feedback[id(weight)], weight)
        groups = {
            name: [feedback[id(p)] for p in group if id(p) in feedback]
            for name, group in parameter_groups(model).items()
        }
        return {name: group for name, group in groups.items() if group}

    def assign_gradients(
        self, model: LanguageModel, tokens_BT: Tensor, targets_BT: Tensor
    ) -> Tensor:
        with gradients_apart([*model.parameters(), *self.parameters()]):
            loss = backprop_with(
                lambda call, grad_y: call.back(grad_y, self.get_parameter(key(call.name))),
                model,
                tokens_BT,
                targets_BT,
            )
            for name, weight in linear_weights(model).items():
                feedback = self.get_parameter(key(name))
                if weight.grad is not None:
                    feedback.grad = weight.grad.add(feedback.detach(), alpha=self.decay)
                    weight.grad.add_(weight.detach(), alpha=self.decay)
        return loss
