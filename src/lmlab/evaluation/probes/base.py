"""What a probe is: it looks at the snapshots of a run, one after another, and reports numbers.

To add one, write a module `probes/<name>.py` with an `Options` model and a final class derived from
`Probe` and named like the module, and add a block `probes.<name>` with its options to params.yaml.
The docstrings here state every rule that tests/test_probes.py checks.

Training knows nothing of probes. They look at what it left behind, so they change no bit of it and
cost it no time.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterator
from copy import deepcopy
from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor

from lmlab.core.errors import UserError
from lmlab.model import noise
from lmlab.model.models.base import LanguageModel, next_token_loss
from lmlab.model.places import record
from lmlab.training.learning_rules.base import LearningRule

Vectors = dict[str, Tensor]
"""A tensor for each of a model's parameters, by the parameter's name."""
RULE_SEED = 0
"""Of torch's generator while a learning rule is looked at."""


class Batch(NamedTuple):
    """The probe batch: windows of validation text, the same for all snapshots, of shape (B, T)."""

    tokens: Tensor
    targets: Tensor


class Reading(NamedTuple):
    """One number of a probe."""

    measure: str
    """What was measured."""
    where: str
    """In which part of the model: `all`, or a parameter, a block or a place by its name."""
    value: float


@dataclass(frozen=True)
class Snapshot:
    """A run before one of its steps, and its weights after that step."""

    step: int
    tokens: int
    """Tokens trained on before the step."""
    model: LanguageModel
    """Before the step, in evaluation mode (no dropout)."""
    after: Vectors
    """The weights after the step."""
    rule: LearningRule
    """Before the step, wrapped in the run's interventions."""
    name: str
    """Of the model, as in params.yaml."""

    @cached_property
    def weights(self) -> Vectors:
        """The weights before the step, detached."""
        return {name: parameter.detach() for name, parameter in self.model.named_parameters()}

    @cached_property
    def update(self) -> Vectors:
        """What the step added to the weights.

        Gradient, clipping, momentum, learning rate and weight decay act on it together.
        """
        return {name: self.after[name] - weight for name, weight in self.weights.items()}

    def true_gradient(self, batch: Batch) -> Vectors:
        """The gradient of the mean loss on the batch, by backpropagation."""
        parameters = dict(self.model.named_parameters())
        loss = next_token_loss(self.model(batch.tokens), batch.targets)
        gradients = torch.autograd.grad(
            loss, list(parameters.values()), allow_unused=True, materialize_grads=True
        )
        return dict(zip(parameters, gradients, strict=True))

    def rule_gradient(self, batch: Batch) -> Vectors:
        """The gradient that the run's rule assigns, zero for parameters it does not train.

        It is computed on copies and always with the same random numbers.
        """
        model, rule = deepcopy(self.model), deepcopy(self.rule)
        with noise.forked(RULE_SEED):
            rule.assign_gradients(model, batch.tokens, batch.targets)
        return {
            name: torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
            for name, parameter in model.named_parameters()
        }


class Probe(ABC):
    """A probe, constructed as `Name(options)`; one object looks at all snapshots of a run in order.

    Options that cannot work for any run are refused on construction with a UserError.
    """

    reading: ClassVar[str]
    """One or two plain sentences for the report: what the numbers show and which values are usual.
    It begins with a capital letter, ends with a full stop, and has 40 to 300 characters.
    """
    timed: ClassVar[bool] = False
    """Whether readings are times or the like, which differ each time: they are kept out of the
    table of the others, and need not be the same when read again.
    """
    remembers: ClassVar[bool] = False
    """Whether a reading depends on the snapshots before it. Otherwise equal snapshots have equal
    readings.
    """
    needs: ClassVar[str] = ""
    """What a model must have for the probe to look at it, such as "attention with a softmax"; empty
    if every model has it.
    """

    @abstractmethod
    def look(self, snapshot: Snapshot, batch: Batch) -> Iterator[Reading]:
        """The readings of one snapshot, by whichever rule and model it was trained.

        Each value is a finite Python float, and no two readings have the same measure and place.
        They are the same each time, whatever the state of torch's generator.

        The snapshot is left as it was, to the bit: weights, buffers, gradients, `requires_grad`,
        training modes, hooks and attributes of model and rule, and `after`. So are torch's
        generator and its gradient mode, once all readings are taken.

        Raises UserError (by `nothing_to_look_at`) if the model lacks what the probe `needs`; it is
        never silent instead, except that a probe that `remembers` may be for later snapshots.
        """


def nothing_to_look_at(probe: Probe, snapshot: Snapshot) -> UserError:
    """The error for a model that lacks what a probe needs."""
    name = type(probe).__module__.rpartition(".")[2]
    return UserError(
        f"params.yaml: probe.probes: {name} finds no {probe.needs} in the model {snapshot.name};"
        " leave it out"
    )


def flat(vectors: Vectors) -> Tensor:
    """All tensors as one long vector in double precision."""
    return torch.cat([vector.detach().flatten().double() for vector in vectors.values()])


def each_and_all(vectors: Vectors) -> Iterator[tuple[str, Vectors]]:
    """Each parameter's vector under its name, then all of them under `all`."""
    for name, vector in vectors.items():
        yield name, {name: vector}
    yield "all", vectors


def block_outputs(model: LanguageModel, tokens_BT: Tensor) -> dict[str, Tensor]:
    """The residual stream after each block, s_BTS, by the block's name: `blocks.0`, ..."""
    with record(model, ["blocks.*.output"]) as states:
        model(tokens_BT)
    return {name.removesuffix(".output"): s_BTS for name, s_BTS in states.items()}
