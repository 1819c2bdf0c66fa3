"""How a learning rule's signals flow: which unit of a model is told what, and from where.

A rule is watched at work on one batch, so this works for any rule, also for one that nobody has
seen before. The model is cut into units: the embedding, each block, the output head. A *signal* is
what arrives at a unit's output on its way backward. It is compared with the gradient that
backpropagation has at the same place.

Where a signal comes from is found by cutting: the rule takes the same step again, once for every
unit, with zeros in place of the gradient that is handed back to that unit (to the output head, from
the loss). A signal that changes came from there, whether autograd carried it or the rule by hand.
"""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from copy import deepcopy
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from lmlab.model import noise
from lmlab.model.models.base import LanguageModel, next_token_loss
from lmlab.model.places import watched
from lmlab.training.learning_rules.base import LearningRule

ABOVE, LOSS, RULE = "from above", "from the loss", "by the rule alone"
ZERO, NOTHING = "zero", "nothing"
TOLERANCE = 1e-6
"""Up to this share of its size a signal counts as unchanged, or as zero."""


@dataclass(frozen=True)
class Unit:
    """A unit of the model under a rule."""

    name: str
    """`embedding`, `blocks.0`, ..., `output head`."""
    parameters: int
    source: str
    """Where its signal comes from.

    ABOVE: from what the unit above hands back (to the output head, from the loss). Otherwise the
    rule puts it there; then it is the name of the nearest unit from whose hand-back it is made,
    LOSS if only from the loss at the logits, RULE if from none of them. ZERO: all of it is zero,
    so its source cannot be seen. NOTHING: there is none.
    """
    more: bool
    """Whether some of a signal from above is left when the unit above hands nothing back."""
    signal: float | None
    """Cosine between its signal and the gradient at its output; None where one is missing or zero.
    """
    weights: float | None
    """Cosine between what its weights are given and their gradient; None if that is nothing."""
    weights_given_zero: bool
    """Whether what its weights are given is zero, rather than nothing."""


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

    The rule runs once, and once more for each unit if it sends anything back; it is a copy that
    does. The model's gradients are None before and afterwards; best in double precision.
    """

    def observed(cut: int | None) -> _Watch:
        watch = _Watch(model, cut)
        with watch.watching(), noise.keyed(0, 0):
            deepcopy(rule).assign_gradients(model, tokens_BT, targets_BT)
        return watch

    true = _Watch(model)
    with true.watching(), noise.keyed(0, 0):
        torch.autograd.backward(next_token_loss(model(tokens_BT), targets_BT))
    given = observed(None)
    arrived = [_total(tensors) for tensors in given.arrived]
    names = _names(model)
    cuts: list[list[Tensor | None]] = []
    if any(signal is not None for signal in arrived):
        cuts = [[_total(each) for each in observed(cut).arrived] for cut in range(len(names))]
    units = []
    for number, parameters in enumerate(_parameters(model)):
        signal = arrived[number]
        source, more = _source(signal, [cut[number] for cut in cuts], number, names)
        received = [given.gradients[name] for name in parameters if name in given.gradients]
        units.append(
            Unit(
                name=names[number],
                parameters=sum(parameter.numel() for parameter in parameters.values()),
                source=source,
                more=more,
                signal=_cosine(signal, _total(true.arrived[number])),
                weights=_of_weights(given.gradients, true.gradients, parameters),
                weights_given_zero=bool(received) and not any(each.any() for each in received),
            )
        )
    own = {name: tuple(tensor.shape) for name, tensor in rule.state_dict().items()}
    return Signals(units, given.passes, own)


def _source(
    signal: Tensor | None, cuts: list[Tensor | None], number: int, names: list[str]
) -> tuple[str, bool]:
    """A unit's `source` and `more`.

    `cuts` has its signal with the gradient cut that is handed back to unit 0, 1, and so on.
    """
    if signal is None:
        return NOTHING, False
    if not signal.any():
        return ZERO, False
    size = TOLERANCE * signal.abs().max()
    for cut in range(number, len(names)):
        left = cuts[cut]
        is_changed = left is None or not bool((left - signal).abs().max() <= size)
        if is_changed and cut == number:
            return ABOVE, left is not None and bool(left.abs().max() > size)
        if is_changed:
            return (LOSS if cut == len(names) - 1 else names[cut + 1]), False
    return RULE, False


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
    """What happens at the outputs of the units while a gradient is computed.

    With a `cut`, zeros take the place of all that is handed back to the output of that unit.
    """

    def __init__(self, model: LanguageModel, cut: int | None = None) -> None:
        self.model, self.cut = model, cut
        self.passes = 0
        self.arrived: list[list[Tensor]] = [[] for _ in range(len(model.blocks) + 2)]
        """The signals that have arrived at the output of each unit."""
        self.gradients: dict[str, Tensor] = {}

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Inside, a rule computes gradients; afterwards the model has none."""
        model, head_unit = self.model, len(self.model.blocks) + 1
        own_embed, own_head = model.embed, model.head

        def embed(tokens_BT: Tensor, cache: object = None) -> Tensor:
            output = own_embed(tokens_BT)
            self._writer(0)(output)
            return output

        def head(x_BTD: Tensor) -> Tensor:
            logits_BTV = self._read(head_unit, own_head(self._read(head_unit - 1, x_BTD)))
            self._writer(head_unit)(logits_BTV)
            return logits_BTV

        outputs = {
            f"blocks.{number}.output": self._writer(number + 1)
            for number in range(len(model.blocks))
        }
        model.embed, model.head = embed, head  # type: ignore[method-assign]
        try:
            with ExitStack() as hooks, watched(model, outputs):
                for number, block in enumerate(model.blocks):
                    handle = block.register_forward_pre_hook(self._reader(number))
                    hooks.callback(handle.remove)
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
            if output.requires_grad:
                output.register_hook(self.arrived[unit].append)  # type: ignore[no-untyped-call]

        return note

    def _reader(self, unit: int) -> Callable[[nn.Module, tuple[Any, ...]], tuple[Any, ...]]:
        def read(module: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
            return self._read(unit, inputs[0]), *inputs[1:]

        return read

    def _read(self, unit: int, output: Tensor) -> Tensor:
        """A unit's output as the unit above, or the loss, reads it; backward, the cut is here."""
        if unit != self.cut or not output.requires_grad:
            return output
        read = output.view_as(output)
        read.register_hook(torch.zeros_like)  # type: ignore[no-untyped-call]
        return read


def _total(arrived: list[Tensor]) -> Tensor | None:
    """The sum of what arrived; None where nothing did."""
    return sum(arrived[1:], arrived[0]) if arrived else None


def _cosine(given: Tensor | None, true: Tensor | None) -> float | None:
    """Between two signals; None where there is nothing to compare: one is missing, the one that was
    given is zero, or the shapes differ.
    """
    if given is None or true is None or given.shape != true.shape or not given.any():
        return None
    return _between(given, true)


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
