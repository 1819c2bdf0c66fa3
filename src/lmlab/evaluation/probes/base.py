"""What a probe is: it looks at the snapshots of a run, one after another, and tells what it sees in
numbers.

Training knows nothing of probes: they look at what it left, so they change no bit of it and cost it
nothing.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterator
from copy import deepcopy
from dataclasses import dataclass
from functools import cached_property
from itertools import islice
from typing import NamedTuple

import torch
from torch import Tensor, nn

from lmlab.core.errors import UserError
from lmlab.model import noise
from lmlab.model.models.base import LanguageModel, next_token_loss
from lmlab.training.learning_rules._detached_blocks import unit_outputs
from lmlab.training.learning_rules.base import LearningRule

Vectors = dict[str, Tensor]
"""A tensor for each of a model's parameters, by the parameter's name."""
RULE_SEED = 0
"""Of the chance that a learning rule draws while it is looked at."""


class Batch(NamedTuple):
    """The windows of text that every probe looks with, the same for all snapshots: two tensors of
    shape (B, T).
    """

    tokens: Tensor
    targets: Tensor


class Reading(NamedTuple):
    """One number: what was measured, and where in the model (`all`, a block, or a parameter by its
    name).
    """

    measure: str
    where: str
    value: float


@dataclass(frozen=True)
class Snapshot:
    """A run before one of its steps, and its weights after it."""

    step: int
    tokens: int
    """How many tokens it had learned from."""
    model: LanguageModel
    """Before the step, in evaluation mode: nothing is dropped out."""
    after: Vectors
    """The weights after the step."""
    rule: LearningRule
    """Before the step, the run's interventions around it."""
    name: str
    """Of the model, as in params.yaml."""

    @cached_property
    def weights(self) -> Vectors:
        """Before the step, detached."""
        return {name: parameter.detach() for name, parameter in self.model.named_parameters()}

    @cached_property
    def update(self) -> Vectors:
        """What the step added to the weights: gradient, clipping, momentum, learning rate and
        weight decay together.
        """
        return {name: self.after[name] - weight for name, weight in self.weights.items()}

    def true_gradient(self, batch: Batch) -> Vectors:
        """Of the mean loss on the batch, by backpropagation."""
        parameters = dict(self.model.named_parameters())
        loss = next_token_loss(self.model(batch.tokens), batch.targets)
        found = torch.autograd.grad(
            loss, list(parameters.values()), allow_unused=True, materialize_grads=True
        )
        return dict(zip(parameters, found, strict=True))

    def rule_gradient(self, batch: Batch) -> Vectors:
        """What the run's rule gives instead, zero where it does not train a parameter.

        Computed on copies, always with the same random numbers.
        """
        model, rule = deepcopy(self.model), deepcopy(self.rule)
        with noise.forked(RULE_SEED):
            rule.assign_gradients(model, batch.tokens, batch.targets)
        return {
            name: torch.zeros_like(p) if p.grad is None else p.grad
            for name, p in model.named_parameters()
        }


class Probe(ABC):
    """Final classes take `(options)`. One object sees all snapshots of a run, so it may remember
    what it saw.
    """

    timed: bool = False
    """Whether readings are times and the like, which differ from run to run: they are kept apart
    from the others.
    """

    @abstractmethod
    def look(self, snapshot: Snapshot, batch: Batch) -> Iterator[Reading]:
        """The readings of one snapshot, each a finite number; it leaves model, rule and chance as
        they were, to the bit.

        Raises UserError (by `nothing_found`) where the model has nothing that the probe looks at.
        """


def nothing_found(probe: Probe, snapshot: Snapshot, what: str) -> UserError:
    """The error of a probe that has nothing to look at: `what` is missing."""
    name = type(probe).__module__.rpartition(".")[2]
    return UserError(
        f"params.yaml: probe.probes: {name} finds no {what} in the model {snapshot.name}; leave"
        " it out"
    )


def flat(vectors: Vectors) -> Tensor:
    """All tensors as one long vector in double precision."""
    return torch.cat([vector.detach().flatten().double() for vector in vectors.values()])


def each_and_all(vectors: Vectors) -> Iterator[tuple[str, Vectors]]:
    """Each parameter's vector under its name, then all of them under `all`."""
    for name, vector in vectors.items():
        yield name, {name: vector}
    yield "all", vectors


def streams(model: LanguageModel, tokens_BT: Tensor) -> Iterator[Tensor]:
    """What each block hands on, from the first to the last, computed as they are asked for."""
    return islice(unit_outputs(model, tokens_BT), 1, None)


def module_name(number: int, module: str = "") -> str:
    """Where a reading is from, written as parameters are named: `blocks.0`, or a module in it."""
    return f"blocks.{number}.{module}".rstrip(".")


def modules_named(block: nn.Module, name: str) -> Iterator[tuple[str, nn.Module]]:
    """The modules within a block whose last name is this."""
    yield from (
        (path, module) for path, module in block.named_modules() if path.rpartition(".")[2] == name
    )
