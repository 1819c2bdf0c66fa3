"""What a learning rule is: how the loss on a batch becomes a gradient for every parameter."""

from abc import ABC, abstractmethod

from torch import Tensor, nn

from lmlab.models.base import LanguageModel
from lmlab.optimizers.base import Groups


class LearningRule(nn.Module, ABC):
    """Final classes take `(options, model)`; they may look at the model's shape, but never keep the model itself.

    A rule is a Module, so what it learns or remembers (feedback weights, say) moves, is saved and resumed with it. It draws
    chance from torch's global generator alone. The model it is made for may be without storage (on the device `meta`): what
    cannot work with that model is refused then, with a UserError that names the rule and the param.
    """

    backward: bool
    """Whether one backward pass of autograd goes down through the whole model, for interventions to act on."""
    final_in_backward: bool = False
    """Whether autograd completes each parameter's gradient once in a call, and nothing is done to it afterwards."""
    compiles: bool = False
    """Whether it calls the model as a whole and does nothing to what goes on inside, so that torch may compile that."""
    short_of_one_batch: str = ""
    """Why the rule cannot learn one batch by heart, where it cannot."""

    @abstractmethod
    def assign_gradients(self, model: LanguageModel, tokens_BT: Tensor, targets_BT: Tensor) -> Tensor:
        """Add the rule's estimate of the gradient of the mean loss to every `p.grad`; change nothing else of the model.

        A parameter that the rule does not teach keeps `p.grad` as it was, and so stays where it is. The rule's own
        parameters, if it has any, get theirs too. Returns the mean loss in nats per token, detached. Called several times
        a step, it accumulates.
        """

    def own_groups(self, model: LanguageModel) -> Groups:
        """The rule's own parameters, which the optimizer moves beside the model's, in groups named as those are.

        When the model's gradient is clipped, theirs are made shorter by the same factor.
        """
        matrices = [parameter for parameter in self.parameters() if parameter.ndim >= 2]
        vectors = [parameter for parameter in self.parameters() if parameter.ndim < 2]
        return {name: group for name, group in (("matrices", matrices), ("vectors", vectors)) if group}

    def rate_factor(self, name: str) -> float:
        """What the learning rate of one of the model's parameters is multiplied with, by its dotted name."""
        return 1.0
