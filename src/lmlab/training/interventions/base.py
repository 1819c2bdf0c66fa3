"""What an intervention is: a learning rule with something done to it, or to its gradients, on the
way.

Interventions act on a step. Where its batch comes in pieces (`train.gradient_accumulation`), what
edits gradients is given the mean of all pieces' gradients, once, so that the pieces save memory and
change nothing else.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from lmlab.core.errors import UserError
from lmlab.core.registry import Choice
from lmlab.model.models.base import LanguageModel
from lmlab.training.learning_rules.base import LearningRule, Pieces
from lmlab.training.optimizers.base import Groups

KEYS = ["intervention", "second_intervention", "third_intervention"]
"""The params that choose them, in the order in which they stand around the rule."""

Gradients = dict[str, Tensor]
"""By the parameter's dotted name; a tied one has one name. Those of a rule's own parameters begin
with OWN.
"""
OWN = "rule/"


class Intervention(LearningRule, ABC):
    """Final classes take `(options, model, rule)` and are rules themselves, so that one can stand
    around another.
    """

    on_the_way: ClassVar[bool] = False
    """Whether it acts on a backward pass through the model, so that it needs a rule that has
    one.
    """
    neutral: ClassVar[dict[str, Any]]
    """Options with which it does nothing: the gradients are then those of the rule, bit for bit."""

    def __init__(self, rule: LearningRule) -> None:
        super().__init__()
        self.rule = rule
        self.backward = rule.backward
        self.final_in_backward = rule.final_in_backward
        self.compiles = rule.compiles and not self.on_the_way
        self.short_of_one_batch = rule.short_of_one_batch
        self.place: int = 1 + getattr(rule, "place", 0)
        """How many interventions it is away from the rule, itself counted."""

    def assign_gradients(
        self, model: LanguageModel, tokens_BT: Tensor, targets_BT: Tensor
    ) -> Tensor:
        return self.accumulate_gradients(model, [(tokens_BT, targets_BT)])

    @abstractmethod
    def accumulate_gradients(self, model: LanguageModel, pieces: Pieces) -> Tensor:
        """What the rule gives for the pieces of a step, with the intervention done to it."""

    @property
    def key(self) -> str:
        """The key of the section `train` that has chosen it."""
        return KEYS[self.place - 1]

    @property
    def innermost(self) -> LearningRule:
        """The learning rule that all interventions stand around."""
        return self.rule.innermost if isinstance(self.rule, Intervention) else self.rule

    @property
    def site(self) -> str:
        """Where it draws noise: two of the same kind around one rule draw different numbers."""
        return f"{name_of(self)} {self.place}"

    def leaders(self, model: LanguageModel) -> dict[str, str]:
        return {f"rule.{own}": leader for own, leader in self.rule.leaders(model).items()}

    def own_groups(self, model: LanguageModel) -> Groups:
        return self.rule.own_groups(model)

    def rate_factor(self, name: str) -> float:
        return self.rule.rate_factor(name)

    def needs_backward(self) -> None:
        """Raises UserError if the rule has no backward pass through the model that could be acted
        on.
        """
        if not self.rule.backward:
            raise UserError(
                f"params.yaml: train.{self.key}: {name_of(self)} acts on a backward pass through"
                " the whole model, and"
                f" {name_of(self.innermost)} has none; take it away, or set train.learning_rule"
                " to one that has, such as"
                " backprop"
            )


class GradientEdit(Intervention):
    """An intervention on the gradients themselves, after the rule: it works with every rule.

    A rule's own parameters are part of what learns, so their gradients are edited as the model's
    are. Where one has to move with a parameter of the model (`leaders`), its gradient is changed by
    just what the leader's is.
    """

    def __init__(self, rule: LearningRule) -> None:
        super().__init__(rule)
        self.final_in_backward = False

    def accumulate_gradients(self, model: LanguageModel, pieces: Pieces) -> Tensor:
        before, own_before = take(model), take(self.rule)
        loss = self.rule.accumulate_gradients(model, pieces)
        found, own = take(model), take(self.rule)
        give(model, before)
        give(self.rule, own_before)
        leaders = self.rule.leaders(model)
        with torch.no_grad():
            free = {
                f"{OWN}{name}": gradient for name, gradient in own.items() if name not in leaders
            }
            edited = self.edit(model, {**found, **free})
            give(
                model,
                {name: gradient for name, gradient in edited.items() if not name.startswith(OWN)},
            )
            own_edited = {
                name[len(OWN) :]: gradient
                for name, gradient in edited.items()
                if name.startswith(OWN)
            }
            give(self.rule, {**own_edited, **_led(own, leaders, found, edited)})
        return loss

    def weights(self, model: LanguageModel) -> dict[str, nn.Parameter]:
        """Every parameter whose gradient may be edited, by its name among the gradients."""
        leaders = self.rule.leaders(model)
        own = {
            f"{OWN}{name}": parameter
            for name, parameter in self.rule.named_parameters()
            if name not in leaders
        }
        return {**dict(model.named_parameters()), **own}

    @abstractmethod
    def edit(self, model: LanguageModel, gradients: Gradients) -> Gradients:
        """The gradients that take the place of those the rule has found; a parameter that is left
        out gets none.
        """


def _led(own: Gradients, leaders: dict[str, str], found: Gradients, edited: Gradients) -> Gradients:
    """The gradients of own parameters that are led, each as far from its leader's as before the
    edit.

    Where the leader's gradient is held back altogether, so is what leads away from it.
    """
    led = {}
    for name, leader in leaders.items():
        if name in own and leader in edited:
            apart = own[name] - found[leader] if leader in found else torch.zeros_like(own[name])
            led[name] = edited[leader] + apart
    return led


def name_of(rule: LearningRule) -> str:
    """The name by which params.yaml knows a rule or an intervention."""
    return type(rule).__module__.rpartition(".")[2]


def take(module: nn.Module) -> Gradients:
    """The gradients there are, which the parameters then no longer have."""
    taken = {
        name: parameter.grad
        for name, parameter in module.named_parameters()
        if parameter.grad is not None
    }
    for parameter in module.parameters():
        parameter.grad = None
    return taken


def give(module: nn.Module, gradients: Gradients) -> None:
    """Add to the gradients there are."""
    parameters = dict(module.named_parameters())
    for name, gradient in gradients.items():
        parameter = parameters[name]
        parameter.grad = gradient if parameter.grad is None else parameter.grad + gradient


def norm(gradients: Sequence[Tensor]) -> Tensor:
    """The Euclidean norm of all of them taken together, a scalar."""
    return torch.nn.utils.get_total_norm(gradients)


def shortening(length: Tensor, limit: float) -> Tensor:
    """The factor that makes what is `length` long no longer than `limit`, and leaves alone what is
    not.
    """
    return torch.where(length > limit, limit / length, torch.ones_like(length))


def blocks_above(model: LanguageModel) -> dict[str, int]:
    """How many blocks stand above each parameter, by its dotted name: all of them above those that
    embed the tokens.

    None stands above a readout, also one that is tied to the embedding.
    """
    parameters = dict(model.named_parameters())
    readout = {id(parameter) for parameter in (model.readout.parameters() if model.readout else ())}
    was_training = model.training
    model.eval()  # so that nothing is dropped, which would draw noise
    x_BTD = model.embed(torch.zeros(1, 1, dtype=torch.long, device=next(model.parameters()).device))
    model.train(was_training)
    embedding: set[str] = set()
    if x_BTD.requires_grad:
        found = torch.autograd.grad(x_BTD.sum(), list(parameters.values()), allow_unused=True)
        embedding = {
            name for name, gradient in zip(parameters, found, strict=True) if gradient is not None
        }
    heights = {}
    for name, parameter in parameters.items():
        path = name.split(".")
        if path[0] == "blocks":
            heights[name] = len(model.blocks) - 1 - int(path[1])
        else:
            heights[name] = (
                len(model.blocks) if name in embedding and id(parameter) not in readout else 0
            )
    return heights


def build_rule(parts: dict[str, Choice], model: LanguageModel) -> LearningRule:
    """The learning rule, in the interventions that stand around it: the first is the one next to
    it.
    """
    rule: LearningRule = parts["learning_rule"].build(model)
    for key in KEYS:
        rule = parts[key].build(model, rule)
    return rule
