"""What a learning rule is: how the loss on a batch becomes a gradient for every parameter."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from lmlab.core.params import Params
from lmlab.model import noise
from lmlab.model.models.base import LanguageModel
from lmlab.training.optimizers.base import Groups
from lmlab.training.widths import by_fans, scale_initialisation

Pieces = Sequence[tuple[Tensor, Tensor]]
"""A batch as equal pieces that go through the model one after another: tokens_BT and targets_BT of
each.
"""


class LearningRule(nn.Module, ABC):
    """Final classes take `(options, model)`; they may look at the model's shape, but never keep the
    model itself.

    A rule is a Module, so what it learns or remembers (feedback weights, say) moves, is saved and
    resumed with it. What it draws at random in a step comes from `noise`, at sites that it names;
    what it draws once, while it is built, from torch's global generator. The model it is made for
    may be without storage (on the device `meta`): what cannot work with that model is refused then,
    with a UserError that names the rule and the param.
    """

    backward: bool
    """Whether one backward pass of autograd goes down through the whole model, for interventions to
    act on.
    """
    final_in_backward: bool = False
    """Whether autograd completes each parameter's gradient once in a call, and nothing is done to
    it afterwards.
    """
    compiles: bool = False
    """Whether it calls the model as a whole and does nothing to what goes on inside, so that torch
    may compile that.
    """
    short_of_one_batch: str = ""
    """Why the rule cannot learn one batch by heart, where it cannot."""

    @abstractmethod
    def assign_gradients(
        self, model: LanguageModel, tokens_BT: Tensor, targets_BT: Tensor
    ) -> Tensor:
        """Add the rule's estimate of the gradient of the mean loss to every `p.grad`; change
        nothing else of the model.

        A parameter that the rule does not teach keeps `p.grad` as it was, and so stays where it is.
        The rule's own parameters, if it has any, get theirs too. Returns the mean loss in nats per
        token, detached.
        """

    def accumulate_gradients(self, model: LanguageModel, pieces: Pieces) -> Tensor:
        """The same for a whole step, whose batch comes in pieces: adds the mean of the pieces'
        gradients to every `p.grad`.

        It needs the memory of one piece and is otherwise the same as a single call with all of the
        batch, but that each piece draws noise of its own. A rule that does something once a step
        does it here. Returns the mean loss, detached.
        """
        return in_pieces(self.assign_gradients, [model, self], model, pieces)

    def own_groups(self, model: LanguageModel) -> Groups:
        """The rule's own parameters, which the optimizer moves beside the model's, in groups named
        as those are (`by_fans`).

        When the model's gradient is clipped, theirs are made shorter by the same factor.
        """
        matrices = [parameter for parameter in self.parameters() if parameter.ndim >= 2]
        vectors = [parameter for parameter in self.parameters() if parameter.ndim < 2]
        return by_fans({"matrices": matrices, "vectors": vectors})

    def follow_width(self, options: Params, model: LanguageModel) -> None:
        """Scale what own parameters were drawn as, as the model's parametrisation has scaled the
        model's.

        The last thing in the `__init__` of a rule that draws parameters of its own. It does nothing
        at the base width, and in the standard parametrisation. Buffers (feedback) are left as they
        are.
        """
        if model.width_ratio != 1:
            scale_initialisation(
                self, self.own_groups(model), model, lambda other: type(self)(options, other)
            )

    def leaders(self, model: LanguageModel) -> dict[str, str]:
        """For own parameters that have to move exactly as one of the model's does: its dotted name,
        by their own names.

        Interventions do to the gradients and rates of those what they do to the leader's.
        """
        return {}

    def rate_factor(self, name: str) -> float:
        """What the learning rate of one of the model's parameters is multiplied with, by its dotted
        name.
        """
        return 1.0


def in_pieces(
    assign: Callable[[LanguageModel, Tensor, Tensor], Tensor],
    learners: Sequence[nn.Module],
    model: LanguageModel,
    pieces: Pieces,
) -> Tensor:
    """Call `assign` for each piece; add the mean of what that gives the learners' gradients to what
    they had.
    """
    if len(pieces) == 1:
        with noise.within("piece", 0):
            return assign(model, *pieces[0])
    parameters = [parameter for learner in learners for parameter in learner.parameters()]
    losses = []
    with gradients_apart(parameters):
        for number, (tokens_BT, targets_BT) in enumerate(pieces):
            with noise.within("piece", number):
                losses.append(assign(model, tokens_BT, targets_BT))
        for parameter in parameters:
            if parameter.grad is not None:
                parameter.grad /= len(pieces)
    return torch.stack(losses).mean()


@contextmanager
def gradients_apart(parameters: Sequence[nn.Parameter]) -> Iterator[None]:
    """Inside, gradients begin at none; after it, what was there before is added."""
    before = [parameter.grad for parameter in parameters]
    for parameter in parameters:
        parameter.grad = None
    yield
    for parameter, gradient in zip(parameters, before, strict=True):
        if gradient is not None:
            parameter.grad = gradient if parameter.grad is None else gradient + parameter.grad
