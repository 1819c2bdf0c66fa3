"""What an intervention is: a learning rule with something done to it, or to its gradients, on the way."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from lmlab.errors import UserError
from lmlab.learning_rules.base import LearningRule
from lmlab.models.base import LanguageModel
from lmlab.optimizers.base import Groups
from lmlab.parts import Choice

KEYS = ["intervention", "second_intervention", "third_intervention"]
"""The params that choose them, in the order in which they stand around the rule."""

Gradients = dict[str, Tensor]
"""By the parameter's dotted name; a tied one has one name."""


class Intervention(LearningRule, ABC):
    """Final classes take `(options, model, rule)` and are rules themselves, so that one can stand around another."""

    on_the_way: ClassVar[bool] = False
    """Whether it acts on a backward pass through the model, so that it needs a rule that has one."""
    neutral: ClassVar[dict[str, Any]]
    """Options with which it does nothing: the gradients are then those of the rule, bit for bit."""

    def __init__(self, rule: LearningRule) -> None:
        super().__init__()
        self.rule = rule
        self.backward = rule.backward
        self.final_in_backward = rule.final_in_backward
        self.compiles = rule.compiles and not self.on_the_way
        self.short_of_one_batch = rule.short_of_one_batch

    def own_groups(self, model: LanguageModel) -> Groups:
        return self.rule.own_groups(model)

    def rate_factor(self, name: str) -> float:
        return self.rule.rate_factor(name)

    def needs_backward(self) -> None:
        """Raises UserError if the rule has no backward pass through the model that could be acted on."""
        if not self.rule.backward:
            ours, its = name_of(self), name_of(self.rule)
            raise UserError(
                f"params.yaml: train.intervention: {ours} acts on a backward pass through the whole model, and {its} has"
                " none; take it away, or set train.learning_rule to one that has, such as backprop"
            )


class GradientEdit(Intervention):
    """An intervention on the gradients themselves, after the rule: it works with every rule."""

    def __init__(self, rule: LearningRule) -> None:
        super().__init__(rule)
        self.final_in_backward = False

    def assign_gradients(self, model: LanguageModel, tokens_BT: Tensor, targets_BT: Tensor) -> Tensor:
        before = take(model)
        loss = self.rule.assign_gradients(model, tokens_BT, targets_BT)
        found = take(model)
        give(model, before)
        with torch.no_grad():
            give(model, self.edit(model, found))
        return loss

    @abstractmethod
    def edit(self, model: LanguageModel, gradients: Gradients) -> Gradients:
        """The gradients that take the place of those the rule has found."""


def name_of(rule: LearningRule) -> str:
    """The name by which params.yaml knows a rule or an intervention."""
    return type(rule).__module__.rpartition(".")[2]


def take(module: nn.Module) -> Gradients:
    """The gradients there are, which the parameters then no longer have."""
    taken = {name: parameter.grad for name, parameter in module.named_parameters() if parameter.grad is not None}
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
    """The factor that makes what is `length` long no longer than `limit`, and leaves alone what is not."""
    return torch.where(length > limit, limit / length, torch.ones_like(length))


def blocks_above(model: LanguageModel) -> dict[str, int]:
    """How many blocks stand above each parameter, by its dotted name: all of them above those that embed the tokens."""
    names = dict(model.named_parameters())
    x_BTD = model.embed(torch.zeros(1, 1, dtype=torch.long, device=next(model.parameters()).device))
    embedding: set[str] = set()
    if x_BTD.requires_grad:
        found = torch.autograd.grad(x_BTD.sum(), list(names.values()), allow_unused=True)
        embedding = {name for name, gradient in zip(names, found, strict=True) if gradient is not None}
    heights = {}
    for name in names:
        path = name.split(".")
        inside = len(model.blocks) - 1 - int(path[1]) if path[0] == "blocks" else 0
        heights[name] = len(model.blocks) if name in embedding else inside
    return heights


def build_rule(parts: dict[str, Choice], model: LanguageModel) -> LearningRule:
    """The learning rule, in the interventions that stand around it: the first is the one next to it."""
    rule: LearningRule = parts["learning_rule"].build(model)
    for key in KEYS:
        rule = parts[key].build(model, rule)
    return rule
