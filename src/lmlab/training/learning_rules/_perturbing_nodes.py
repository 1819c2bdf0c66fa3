"""Noise at nodes, the outputs of linear maps, and what it did to the losses: for rules that need no
backward pass.

As in `perturbing`, noise is drawn again rather than kept, and no pass keeps a graph; callers hold
`torch.no_grad()` and `noise.repeatable()`.
"""

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.autograd.forward_ad as forward_mode
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.grad import conv1d_weight
from torch.overrides import TorchFunctionMode

from lmlab.model.models.base import LanguageModel
from lmlab.training.learning_rules._perturbing import (
    Draw,
    Named,
    add_to_gradient,
    differentiable_attention,
    drawn,
    moved,
    taught,
)

_ARGUMENTS: dict[Any, tuple[str, ...]] = {
    nn.functional.linear: ("input", "weight", "bias"),
    nn.functional.conv1d: ("input", "weight", "bias", "stride", "padding", "dilation", "groups"),
    nn.functional.embedding: ("input", "weight"),
}
"""The maps that are linear in their weights: a node is a number in the output of one (an embedding
maps one-hot vectors).
"""


@dataclass(frozen=True)
class Group:
    """What gets noise in the same pass: the nodes of maps with these weights, and parameters
    outside maps themselves.
    """

    weights: Named
    outside: Named


def noise_groups(model: nn.Module, at_once: int) -> list[Group]:
    """`at_once` maps at a time, in the model's order, then what is outside (gains, decays); 0:
    everything in one pass.
    """
    maps = [
        module
        for module in model.modules()
        if isinstance(module, nn.Linear | nn.Conv1d | nn.Embedding)
    ]
    inside = {id(parameter) for module in maps for parameter in module.parameters(recurse=False)}
    of_maps = {id(module.weight) for module in maps}
    weights = [(name, parameter) for name, parameter in taught(model) if id(parameter) in of_maps]
    outside = [
        (name, parameter) for name, parameter in taught(model) if id(parameter) not in inside
    ]
    if not at_once:
        return [Group(weights, outside)]
    groups = [
        Group(weights[first : first + at_once], []) for first in range(0, len(weights), at_once)
    ]
    return [*groups, Group([], outside)] if outside else groups


@dataclass
class Call:
    """One call of a map, and which tokens the rows of its output belong to."""

    name: str
    """Of its weight, with dots."""
    function: Any
    arguments: dict[str, Any]
    output: Tensor
    batch: int
    time: int
    rows: Tensor | None
    """For an output with a row for some of the tokens (a mixture's expert): their places in the
    batch laid out flat.
    """
    step: int
    """How often this weight was called before in this pass: the time step, where a row stands for a
    sequence.
    """

    def noise(self, draw: Draw, member: int) -> Tensor:
        """A member's noise for the output. A token has its own, also when an expert is sent other
        tokens beside it.
        """
        if self.rows is None:
            return drawn(draw, self.output, member, self.name, self.step)
        every_token = self.output.new_empty(self.batch * self.time, self.output.shape[-1])
        return drawn(draw, every_token, member, self.name, self.step)[self.rows]

    def spread(self, credit_BT: Tensor) -> Tensor:
        """Each token's credit laid over the rows it has in the output.

        Where rows are not those of single tokens (a table of positions), all get the credit of the
        batch's first tokens together, which is the change of the whole loss: unbiased too, but
        noisier.
        """
        shape, is_linear = self.output.shape, self.function is nn.functional.linear
        if self.rows is not None:
            return credit_BT.flatten()[self.rows, None]
        if self.function is nn.functional.conv1d and shape[::2] == (self.batch, self.time):
            return credit_BT[:, None, :]
        if len(shape) == 3 and shape[:2] == (self.batch, self.time):
            return credit_BT[:, :, None]
        if is_linear and len(shape) == 2 and shape[0] == self.batch * self.time:
            return credit_BT.flatten()[:, None]
        if is_linear and len(shape) == 2 and shape[0] == self.batch and self.step < self.time:
            return credit_BT[:, self.step, None]
        return credit_BT[:, 0].sum()

    def teach(self, gradient: Tensor) -> None:
        """From the gradient at the output, those of weight and bias: products of what is at hand
        here, no backward pass.
        """
        weight, bias, given = (
            self.arguments["weight"],
            self.arguments.get("bias"),
            self.arguments["input"],
        )
        gradient = gradient.to(weight.dtype)
        rows = gradient.flatten(0, -2)
        if self.function is nn.functional.embedding:
            add_to_gradient(weight, torch.zeros_like(weight).index_add_(0, given.flatten(), rows))
        elif self.function is nn.functional.linear:
            add_to_gradient(weight, rows.T @ given.to(weight.dtype).flatten(0, -2))
        else:
            shape = {
                key: self.arguments[key] for key in ("stride", "padding", "dilation", "groups")
            }
            found = conv1d_weight(given.to(weight.dtype), weight.shape, gradient, **shape)  # type: ignore[no-untyped-call]
            add_to_gradient(weight, found)
            rows = gradient.transpose(1, 2).flatten(0, 1)
        if bias is not None:
            add_to_gradient(bias, rows.sum(dim=0))


class AtMaps(TorchFunctionMode):
    """While it is entered, every call of a map with one of the weights gives what `visit` makes of
    it.
    """

    def __init__(self, weights: Named, tokens_BT: Tensor, visit: Callable[[Call], Tensor]) -> None:
        super().__init__()
        self.names, self.visit = {id(parameter): name for name, parameter in weights}, visit
        self.batch, self.time = tokens_BT.shape
        self.picked: Tensor | None = None
        self.calls: Counter[int] = Counter()

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        output = func(*args, **(kwargs or {}))
        if func is Tensor.__getitem__:
            self._note_picked(*args)
        if func not in _ARGUMENTS:
            return output
        arguments = {**dict(zip(_ARGUMENTS[func], args, strict=False)), **(kwargs or {})}
        weight, rows = id(arguments["weight"]), self._rows(output)
        if weight not in self.names:
            return output
        call = Call(
            self.names[weight],
            func,
            arguments,
            output,
            self.batch,
            self.time,
            rows,
            self.calls[weight],
        )
        self.calls[weight] += 1
        return self.visit(call)

    def _note_picked(self, tensor: Tensor, index: Any) -> None:
        """A mixture of experts picks rows of x_ND, where N counts all tokens, for the next maps."""
        of_all = tensor.ndim == 2 and len(tensor) == self.batch * self.time
        if (
            of_all
            and isinstance(index, Tensor)
            and index.ndim == 1
            and not index.is_floating_point()
        ):
            self.picked = index

    def _rows(self, output: Tensor) -> Tensor | None:
        """The tokens of a map's rows, where they are those picked last; a map over all tokens ends
        that.
        """
        if self.picked is not None and output.ndim == 2 and len(output) == len(self.picked):
            return self.picked
        self.picked = None
        return None


def token_losses(
    model: LanguageModel, weights: Mapping[str, Tensor], tokens_BT: Tensor, targets_BT: Tensor
) -> Tensor:
    """losses_BT: each token's share of the mean loss, which is their sum."""
    logits_BTV = (
        functional_call(model, dict(weights), (tokens_BT,)) if weights else model(tokens_BT)
    )
    precise = torch.promote_types(logits_BTV.dtype, torch.float32)
    losses_N = nn.functional.cross_entropy(
        logits_BTV.flatten(0, 1).to(precise), targets_BT.flatten(), reduction="none"
    )
    return losses_N.view_as(targets_BT) / targets_BT.numel()


def credit(change_BT: Tensor) -> Tensor:
    """What noise at each token may have changed: the losses there and later in its sequence, as
    models are causal.
    """
    return change_BT.flip(1).cumsum(dim=1).flip(1)


def noisy_losses(
    model: LanguageModel,
    group: Group,
    member: int,
    draw: Draw,
    sigma: float,
    tokens_BT: Tensor,
    targets_BT: Tensor,
) -> Tensor:
    """losses_BT with `sigma` times noise at the nodes of the group's maps and in its parameters
    outside maps.
    """
    weights = moved(group.outside, draw, member, sigma)
    with AtMaps(
        group.weights, tokens_BT, lambda call: call.output + sigma * call.noise(draw, member)
    ):
        return token_losses(model, weights, tokens_BT, targets_BT)


def dual(value: Tensor, tangent: Tensor) -> Tensor:
    """The value, with the direction in which what follows is differentiated."""
    made: Tensor = forward_mode.make_dual(value, tangent)  # type: ignore[no-untyped-call]
    return made


def value_and_slope(of_duals: Tensor) -> tuple[Tensor, Tensor]:
    """What was computed from duals, and its derivative: zero if no dual had a part in it."""
    value, slope = forward_mode.unpack_dual(of_duals)  # type: ignore[no-untyped-call]
    return value, torch.zeros_like(value) if slope is None else slope


def slopes_along_noise(
    model: LanguageModel,
    group: Group,
    member: int,
    draw: Draw,
    tokens_BT: Tensor,
    targets_BT: Tensor,
) -> tuple[Tensor, Tensor]:
    """losses_BT, and their derivatives along the noise of `noisy_losses`."""

    def along_noise(call: Call) -> Tensor:
        return call.output + dual(torch.zeros_like(call.output), call.noise(draw, member))

    with forward_mode.dual_level(), differentiable_attention():
        weights = {
            name: dual(parameter.detach(), drawn(draw, parameter, member, name))
            for name, parameter in group.outside
        }
        with AtMaps(group.weights, tokens_BT, along_noise):
            return value_and_slope(token_losses(model, weights, tokens_BT, targets_BT))


@dataclass
class Sample:
    """Noise, by the number of its member, for a group of parameters, and what it did."""

    group: Group
    member: int
    credit_BT: Tensor  # noqa: N815


def teach_nodes(model: LanguageModel, samples: list[Sample], draw: Draw, tokens_BT: Tensor) -> None:
    """Add to the gradients the sum over samples of noise times credit, in a further pass that draws
    the noise again.

    Doing it there keeps no map's input for later.
    """
    by_weight: dict[str, list[Sample]] = {}
    for sample in samples:
        for name, parameter in sample.group.outside:
            along = drawn(draw, parameter, sample.member, name)
            add_to_gradient(parameter, sample.credit_BT[:, 0].sum() * along)
        for name, _ in sample.group.weights:
            by_weight.setdefault(name, []).append(sample)

    def teach(call: Call) -> Tensor:
        gradient = torch.zeros_like(call.output)
        for sample in by_weight[call.name]:
            gradient += call.spread(sample.credit_BT) * call.noise(draw, sample.member)
        call.teach(gradient)
        return call.output

    with AtMaps([named for sample in samples for named in sample.group.weights], tokens_BT, teach):
        model(tokens_BT)
