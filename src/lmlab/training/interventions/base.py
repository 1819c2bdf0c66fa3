"""An intervention: a change to a learning rule's backward pass or to the gradients it gives.

An intervention wraps a rule and is a rule itself, so that one can wrap another. To write one, add a
module to this folder with `Options(Params)` and one final subclass of `Intervention` or, if it only
changes gradients after the rule has computed them, of `GradientEdit`; and a block of the module's
name to `interventions` in params.yaml. The smallest is:

    class HalvedGradients(GradientEdit):
        neutral = {"strength": 0.0}

        def __init__(self, options: Options, model: LanguageModel, rule: LearningRule) -> None:
            super().__init__(rule)
            self.strength = options.strength

        def edit(self, model, gradients):
            factor = 1 - self.strength / 2
            return {name: factor * gradient for name, gradient in gradients.items()}

The contract, which tests hold every intervention in this folder to, is that of a learning rule
(learning_rules/base.py) and:

- *Neutral options.* With the options in `neutral` the gradients are those of the rule, bit for bit,
  also when it is wrapped twice. With the options in params.yaml it changes gradients, learning
  rates or memory.
- *The step's gradient.* It acts on a training step, not on its micro-batches: with
  `train.gradient_accumulation` it changes the mean of all micro-batches' gradients, once. What was
  in `p.grad` before the call is not edited, and is added to the result.
- *Loss.* It returns the rule's loss unchanged.
- *No traces.* Hooks, modes and replaced methods are gone when a call ends.
- *Own parameters.* `own_groups`, `leaders` and `rate_factor` pass on the rule's. Gradients of the
  rule's own parameters are edited like the model's, and those of a parameter with a leader so that
  its difference from the leader's gradient stays (`GradientEdit` does so).
- *Refusals.* If it acts inside the backward pass (`acts_in_backward`) it calls `require_backward`
  unless its options are neutral. What cannot work with a model is refused in `__init__` by a
  UserError of one line that names the intervention. Otherwise all gradients are finite, for every
  model and rule.
- *State and randomness.* State is in buffers, so that it resumes bit for bit. Noise is drawn from
  `lmlab.model.noise` at `self.site` and the parameter's name.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from lmlab.core.errors import UserError
from lmlab.core.registry import Choice
from lmlab.model.models.base import LanguageModel
from lmlab.training.learning_rules.base import LearningRule, MicroBatches
from lmlab.training.optimizers.base import Groups

KEYS = ["intervention", "second_intervention", "third_intervention"]
"""The keys of the section `train` that choose interventions, from the innermost outwards."""

Gradients = dict[str, Tensor]
"""By the parameter's dotted name; a tied parameter has one name. Names of a rule's own parameters
begin with OWN_PREFIX.
"""
OWN_PREFIX = "rule/"


class Intervention(LearningRule, ABC):
    """Wraps a learning rule. Final classes take `(options, model, rule)`."""

    acts_in_backward: ClassVar[bool] = False
    """Whether it acts inside a backward pass through the model, and so needs a rule that has one.
    """
    acts_on_windows: bool = False
    """Whether it asks the rule for the gradients of each window by itself."""
    neutral: ClassVar[dict[str, Any]]
    """Options with which it does nothing: the gradients are then those of the rule, bit for bit."""

    def __init__(self, rule: LearningRule) -> None:
        super().__init__()
        self.rule = rule
        self.backward = rule.backward
        self.final_in_backward = rule.final_in_backward
        self.shares_population = rule.shares_population
        self.remembers = self.remembers or rule.remembers
        self.compiles = rule.compiles and not self.acts_in_backward
        self.cannot_overfit = rule.cannot_overfit
        self.depth: int = 1 + getattr(rule, "depth", 0)
        """How many interventions there are from this one to the rule, itself included."""

    def assign_gradients(
        self, model: LanguageModel, tokens_BT: Tensor, targets_BT: Tensor
    ) -> Tensor:
        return self.accumulate_gradients(model, [(tokens_BT, targets_BT)])

    @abstractmethod
    def accumulate_gradients(self, model: LanguageModel, micro_batches: MicroBatches) -> Tensor:
        """Add the rule's gradients for a step, with the intervention; return the rule's loss."""

    @property
    def key(self) -> str:
        """The key of the section `train` that chose it."""
        return KEYS[self.depth - 1]

    @property
    def innermost(self) -> LearningRule:
        """The learning rule inside all interventions."""
        return self.rule.innermost if isinstance(self.rule, Intervention) else self.rule

    @property
    def site(self) -> str:
        """Its noise site; two interventions of one kind around a rule draw different noise."""
        return f"{name_of(self)} {self.depth}"

    def leaders(self, model: LanguageModel) -> dict[str, str]:
        return {f"rule.{own}": leader for own, leader in self.rule.leaders(model).items()}

    def own_groups(self, model: LanguageModel) -> Groups:
        return self.rule.own_groups(model)

    def rate_factor(self, name: str) -> float:
        return self.rule.rate_factor(name)

    def require_backward(self) -> None:
        """Raise UserError if the rule has no backward pass through the model to act in."""
        if self.rule.backward:
            return
        raise UserError(
            f"params.yaml: train.{self.key}: {name_of(self)} acts on a backward pass through the"
            f" whole model, and {name_of(self.innermost)} has none; remove it, or set"
            " train.learning_rule to one that has, such as backprop"
        )


class GradientEdit(Intervention):
    """An intervention on the gradients that a rule gives for a step. It works with every rule.

    The gradients of the rule's own parameters are edited together with the model's. One that has a
    leader (`leaders`) is not given to `edit`: it changes by as much as its leader's gradient does.
    """

    def __init__(self, rule: LearningRule) -> None:
        super().__init__(rule)
        self.final_in_backward = False

    def accumulate_gradients(self, model: LanguageModel, micro_batches: MicroBatches) -> Tensor:
        model_before = take_gradients(model)
        own_before = take_gradients(self.rule)
        loss = self.rule.accumulate_gradients(model, micro_batches)
        of_model = take_gradients(model)
        own = take_gradients(self.rule)
        add_gradients(model, model_before)
        add_gradients(self.rule, own_before)
        with torch.no_grad():
            self._add_edited(model, of_model, own)
        return loss

    def _add_edited(self, model: LanguageModel, of_model: Gradients, own: Gradients) -> None:
        leaders = self.rule.leaders(model)
        gradients = dict(of_model)
        for name, gradient in own.items():
            if name not in leaders:
                gradients[OWN_PREFIX + name] = gradient
        edited = self.edit(model, gradients)
        own_edited = _with_leaders(own, leaders, of_model, edited)
        model_edited: Gradients = {}
        for name, gradient in edited.items():
            if name.startswith(OWN_PREFIX):
                own_edited[name.removeprefix(OWN_PREFIX)] = gradient
            else:
                model_edited[name] = gradient
        add_gradients(model, model_edited)
        add_gradients(self.rule, own_edited)

    def weights(self, model: LanguageModel) -> dict[str, nn.Parameter]:
        """Every parameter whose gradient `edit` may be given, under its name there."""
        leaders = self.rule.leaders(model)
        own = {
            OWN_PREFIX + name: parameter
            for name, parameter in self.rule.named_parameters()
            if name not in leaders
        }
        return {**dict(model.named_parameters()), **own}

    @abstractmethod
    def edit(self, model: LanguageModel, gradients: Gradients) -> Gradients:
        """The gradients to use in place of the rule's; a parameter that is left out gets none.

        Called without autograd. It returns new tensors or those it was given, unchanged.
        """


def _with_leaders(
    own: Gradients, leaders: dict[str, str], before: Gradients, edited: Gradients
) -> Gradients:
    """Gradients of own parameters that have a leader, as far from the leader's as before the edit.

    Where the edit left out the leader's gradient, its follower gets none either.
    """
    followers: Gradients = {}
    for name, leader in leaders.items():
        if name not in own or leader not in edited:
            continue
        zero = torch.zeros_like(own[name])
        difference = own[name] - before[leader] if leader in before else zero
        followers[name] = edited[leader] + difference
    return followers


def name_of(rule: LearningRule) -> str:
    """The name of a rule or an intervention in params.yaml."""
    return type(rule).__module__.rpartition(".")[2]


def take_gradients(module: nn.Module) -> Gradients:
    """Remove and return the gradients of a module's parameters, without those that have none."""
    gradients: Gradients = {}
    for name, parameter in module.named_parameters():
        if parameter.grad is not None:
            gradients[name] = parameter.grad
            parameter.grad = None
    return gradients


def add_gradients(module: nn.Module, gradients: Gradients) -> None:
    """Add gradients to those that the module's parameters have."""
    parameters = dict(module.named_parameters())
    for name, gradient in gradients.items():
        parameter = parameters[name]
        parameter.grad = gradient if parameter.grad is None else parameter.grad + gradient


def total_norm(gradients: Sequence[Tensor]) -> Tensor:
    """The Euclidean norm of all tensors taken together as one vector, a scalar."""
    return torch.nn.utils.get_total_norm(gradients)


def clip_factor(norm: Tensor, limit: float) -> Tensor:
    """min(1, limit / norm): the factor that limits a norm."""
    return torch.where(norm > limit, limit / norm, torch.ones_like(norm))


def blocks_above(model: LanguageModel) -> dict[str, int]:
    """How many blocks stand above each parameter, by dotted name: all of them above the embedding.

    There are none above the readout, also where it is tied to the embedding. A parameter outside
    the blocks belongs to the embedding if the embedding's output depends on it.
    """
    parameters = dict(model.named_parameters())
    readout_parameters = model.readout.parameters() if model.readout else ()
    readout_ids = {id(parameter) for parameter in readout_parameters}
    embedding_names = _embedding_names(model)
    counts: dict[str, int] = {}
    for name, parameter in parameters.items():
        path = name.split(".")  # blocks.3.attention.out.weight
        if path[0] == "blocks":
            counts[name] = len(model.blocks) - 1 - int(path[1])
        elif name in embedding_names and id(parameter) not in readout_ids:
            counts[name] = len(model.blocks)
        else:
            counts[name] = 0
    return counts


def _embedding_names(model: LanguageModel) -> set[str]:
    """Names of the parameters that the embedding's output depends on, a tied readout included."""
    parameters = dict(model.named_parameters())
    device = next(model.parameters()).device
    was_training = model.training
    model.eval()  # no dropout, which would draw noise
    x_BTD = model.embed(torch.zeros(1, 1, dtype=torch.long, device=device))
    model.train(was_training)
    if not x_BTD.requires_grad:
        return set()
    gradients = torch.autograd.grad(x_BTD.sum(), list(parameters.values()), allow_unused=True)
    return {
        name for name, gradient in zip(parameters, gradients, strict=True) if gradient is not None
    }


def build_rule(parts: dict[str, Choice], model: LanguageModel) -> LearningRule:
    """The chosen learning rule wrapped in the chosen interventions, the first one innermost."""
    rule: LearningRule = parts["learning_rule"].build(model)
    for key in KEYS:
        rule = parts[key].build(model, rule)
    return rule
