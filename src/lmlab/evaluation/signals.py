"""How a learning rule's signals flow: which unit of a model is told what, and from where.

A rule is watched at work on one batch, so this works for any rule, also for one that nobody has
seen before. The model is cut into units: the embedding, each block, the output head. A *signal* is
what arrives at a unit's output on its way backward. It comes from the unit above where that unit
read this very output (to the output head, from the loss), and is the unit's own where the rule put
it there. It is compared with the gradient that backpropagation has at the same place.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from lmlab.model import noise
from lmlab.model.models.base import LanguageModel, next_token_loss
from lmlab.model.places import watched
from lmlab.training.learning_rules.base import LearningRule

ABOVE, OWN, NOTHING = "from above", "its own", "nothing"


@dataclass(frozen=True)
class Unit:
    """A unit of the model under a rule."""

    name: str
    """`embedding`, `blocks.0`, ..., `output head`."""
    parameters: int
    source: str
    """Where its signal comes from: ABOVE, OWN or NOTHING."""
    signal: float | None
    """Cosine between its signal and the gradient at its output; None without a signal."""
    weights: float | None
    """Cosine between what its weights are given and their gradient; None if given nothing."""


@dataclass(frozen=True)
class Signals:
    """What a rule does to a model in one step."""

    units: list[Unit]
    """From the embedding to the output head."""
    forward_passes: int
    """How often the first block ran."""
    own: dict[str, tuple[int, ...]]
    """The shapes of the rule's own parameters and buffers."""


def signals(
    rule: LearningRule, model: LanguageModel, tokens_BT: Tensor, targets_BT: Tensor
) -> Signals:
    """Watch a rule assign gradients on one batch, and backpropagation on the same.

    The model's gradients are None before and afterwards; best in double precision.
    """
    true = _Watch(model)
    with true.watching():
        torch.autograd.backward(next_token_loss(model(tokens_BT), targets_BT))
    given = _Watch(model)
    with given.watching(), noise.keyed(0, 0):
        rule.assign_gradients(model, tokens_BT, targets_BT)
    units = []
    for number, parameters in enumerate(_parameters(model)):
        units.append(
            Unit(
                name=_names(model)[number],
                parameters=sum(parameter.numel() for parameter in parameters.values()),
                source=given.source(number),
                signal=_cosine(given.arrived[number], true.arrived[number]),
                weights=_of_weights(given.gradients, true.gradients, parameters),
            )
        )
    own = {name: tuple(tensor.shape) for name, tensor in rule.state_dict().items()}
    return Signals(units, given.passes, own)


def _names(model: LanguageModel) -> list[str]:
    blocks = [f"blocks.{number}" for number in range(len(model.blocks))]
    return ["embedding", *blocks, "output head"]


def _parameters(model: LanguageModel) -> list[dict[str, nn.Parameter]]:
    """The parameters of each unit by name, the embedding's first and the output head's last.

    What belongs to no block and is not used by `embed` belongs to the head.
    """
    named = dict(model.named_parameters())
    blocks: list[dict[str, nn.Parameter]] = [{} for _ in model.blocks]
    ends: dict[str, nn.Parameter] = {}
    for name, parameter in named.items():
        first, _, rest = name.partition(".")
        if first == "blocks":
            blocks[int(rest.split(".")[0])][name] = parameter
        else:
            ends[name] = parameter
    embedding = {
        name: parameter
        for name, parameter in ends.items()
        if "embedding" in name.split(".") or "position" in name.split(".")
    }
    head = {name: parameter for name, parameter in ends.items() if name not in embedding}
    return [embedding, *blocks, head]


class _Watch:
    """What happens at the outputs of the units while a gradient is computed."""

    def __init__(self, model: LanguageModel) -> None:
        self.model = model
        self.passes = 0
        self.arrived: list[list[Tensor]] = [[] for _ in range(len(model.blocks) + 2)]
        """The signals that have arrived at the output of each unit."""
        self.gradients: dict[str, Tensor] = {}
        self._last: dict[int, Tensor] = {}
        """The latest output of each unit."""
        self._is_read = {len(model.blocks) + 1}
        """The units whose very output the unit above has read; the loss reads the head's."""

    def source(self, unit: int) -> str:
        """Where the signal at a unit's output has come from."""
        if not self.arrived[unit]:
            return NOTHING
        return ABOVE if unit in self._is_read else OWN

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Inside, a rule computes gradients; afterwards the model has none."""
        model = self.model
        functions: dict[str, Callable[[Tensor], None]] = {}
        for number in range(len(model.blocks)):
            functions[f"blocks.{number}.input"] = self._reader(number)
            functions[f"blocks.{number}.output"] = self._writer(number + 1)
        own_embed, own_head = model.embed, model.head

        def embed(tokens_BT: Tensor, cache: object = None) -> Tensor:
            output = own_embed(tokens_BT)
            self._writer(0)(output)
            return output

        def head(x_BTD: Tensor) -> Tensor:
            self._reader(len(model.blocks))(x_BTD)
            logits_BTV = own_head(x_BTD)
            self._writer(len(model.blocks) + 1)(logits_BTV)
            return logits_BTV

        model.embed, model.head = embed, head  # type: ignore[method-assign]
        try:
            with watched(model, functions):
                yield
        finally:
            del model.embed, model.head
        for name, parameter in model.named_parameters():
            if parameter.grad is not None:
                self.gradients[name] = parameter.grad
        model.zero_grad()

    def _writer(self, unit: int) -> Callable[[Tensor], None]:
        def note(output: Tensor) -> None:
            self.passes += unit == 1
            self._last[unit] = output
            if output.requires_grad:
                output.register_hook(self.arrived[unit].append)  # type: ignore[no-untyped-call]

        return note

    def _reader(self, unit: int) -> Callable[[Tensor], None]:
        def note(read: Tensor) -> None:
            if read is self._last.get(unit):
                self._is_read.add(unit)

        return note


def _cosine(given: list[Tensor], true: list[Tensor]) -> float | None:
    """Between the sums of what arrived; None where nothing arrived, or nothing that can be compared
    (other shapes, or none at all by backpropagation).
    """
    if not given or not true or given[0].shape != true[0].shape:
        return None
    return _between(sum(given[1:], given[0]), sum(true[1:], true[0]))


def _of_weights(
    given: dict[str, Tensor], true: dict[str, Tensor], parameters: dict[str, nn.Parameter]
) -> float | None:
    """The cosine over a unit's parameters; None where all that they are given is zero."""
    names = [name for name in parameters if name in given]
    if not any(given[name].any() for name in names):
        return None
    return _between(_joined(given, parameters), _joined(true, parameters))


def _joined(gradients: dict[str, Tensor], parameters: dict[str, nn.Parameter]) -> Tensor:
    """The gradients of the parameters as one vector, zero where there is none."""
    parts = [
        gradients.get(name, torch.zeros_like(parameter)).flatten()
        for name, parameter in parameters.items()
    ]
    return torch.cat(parts)


def _between(one: Tensor, other: Tensor) -> float:
    return float(torch.cosine_similarity(one.flatten(), other.flatten(), dim=0).detach())
