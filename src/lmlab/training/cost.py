"""The size of a run: parameters by part, FLOPs per token, and memory.

Counted on the model itself with one window of text, by torch's own table of the FLOPs of each
operation.
"""

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from math import inf
from typing import Any
from weakref import WeakSet

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from lmlab.data.start import spent
from lmlab.model import noise
from lmlab.model.device import autocast, memory_bytes
from lmlab.model.models.base import LanguageModel, next_token_loss
from lmlab.model.record import GroupSize, MemoryBytes, ModelRecord, RunSize

BACKWARD = 2
"""How many forward passes a backward pass costs: a matrix product has two gradients, each a matrix
product of the same size.
"""


def training_flops(forward: float, tokens: float) -> float:
    """FLOPs of backpropagation on so many tokens: 3 * forward * tokens.

    `forward` is the FLOPs of a forward pass for each token. Other learning rules may cost more or
    less; the probe `cost` measures them.
    """
    return (1 + BACKWARD) * forward * tokens


def flops_at(saved: ModelRecord, tokens: float) -> float:
    """FLOPs that a run had spent at so many tokens, what earlier runs cost included."""
    before = spent(saved.earlier)
    return before.flops + training_flops(saved.forward_flops_per_token, tokens - before.tokens)


def bytes_at(saved: ModelRecord, tokens: float) -> float:
    """Bytes of text that a run had trained on at so many tokens, those of earlier runs included."""
    before = spent(saved.earlier)
    own_tokens = saved.tokens - before.tokens
    share = (tokens - before.tokens) / own_tokens if own_tokens else 0.0
    return before.bytes + share * (saved.bytes - before.bytes)


class TooMuch(Exception):  # noqa: N818 (a bound that was asked for, not a fault)
    """A forward pass takes more FLOPs or more calls of torch than its bound."""


class _Flops(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Adds up the FLOPs of every operation inside it, and counts the calls of torch.

    Raises TooMuch at more than `most` FLOPs or more than `most_calls` calls. (torch's own
    FlopCounterMode needs 2 s to load a compiler first.)
    """

    def __init__(self, most: float, most_calls: float) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.total, self.most = 0, most
        self.calls, self.most_calls = 0, most_calls

    def __torch_dispatch__(
        self, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        self.calls += 1
        if self.total > self.most or self.calls > self.most_calls:
            raise TooMuch
        result = function(*args, **kwargs)
        flops_of = flop_registry.get(function.overloadpacket)
        if flops_of is not None:
            self.total += flops_of(*args, **kwargs, out_val=result)
        return result


def parameters_by_part(model: LanguageModel) -> dict[str, int]:
    """The number of parameters in each of the model's parts, summed over all blocks."""
    counts: Counter[str] = Counter()
    for name, parameter in model.named_parameters():
        path = name.split(".")
        if path[0] == "blocks":  # blocks.3.attention.out.weight
            path = path[2:]
        counts[path[0]] += parameter.numel()
    return dict(counts)


def forward_flops(model: LanguageModel) -> int:
    """FLOPs of a forward pass for each token of a full window.

    A multiplication and an addition count as two. Matrix products and convolutions are counted,
    attention as if nothing were masked; elementwise operations are not.
    """
    return window_flops(model)[0] // model.context


def window_flops(
    model: LanguageModel, most: float = inf, most_calls: float = inf
) -> tuple[int, int]:
    """The FLOPs of a forward pass of a full window, and its calls of torch.

    Raises TooMuch where either is more than its bound.
    """
    flops = _Flops(most, most_calls)
    # attention in the form that is made of matrix products alone
    with _as_in_training(model), flops, torch.no_grad(), sdpa_kernel(SDPBackend.MATH):
        model(_window(model))
    return flops.total, flops.calls


def activation_bytes(model: LanguageModel, windows: int = 1, precision: str = "float32") -> int:
    """Bytes that so many full windows at once keep for the backward pass, weights not counted.

    Measured with one window and with two, and extended linearly.
    """
    of_one = kept_bytes(model, 1, precision)
    of_two = kept_bytes(model, 2, precision)
    return extended_bytes(of_one, of_two, windows)


def extended_bytes(of_one: int, of_two: int, windows: int) -> int:
    """The bytes kept of so many windows, from those kept of one window and of two.

    Some are kept once however many windows there are: masks, weights in lower precision.
    """
    return of_one + (windows - 1) * (of_two - of_one)


class _Kept:
    """A tensor that autograd has saved; it is freed with autograd's graph."""

    def __init__(self, tensor: Tensor) -> None:
        self.tensor = tensor


def kept_bytes(model: LanguageModel, windows: int, precision: str) -> int:
    """The same as `activation_bytes`, but measured with all of the windows."""
    saved: WeakSet[_Kept] = WeakSet()

    def keep(tensor: Tensor) -> _Kept:
        kept = _Kept(tensor.detach())  # with its graph it would keep itself alive
        saved.add(kept)
        return kept

    window = _window(model).expand(windows, -1)
    hooks = torch.autograd.graph.saved_tensors_hooks(keep, lambda kept: kept.tensor)
    with _as_in_training(model), autocast(precision, window.device), hooks:
        loss = next_token_loss(model(window), window)
    weights = {_storage(parameter) for parameter in model.parameters()}
    storages = {_storage(kept.tensor): kept.tensor.untyped_storage().nbytes() for kept in saved}
    del loss  # until here its graph held everything that was kept
    return sum(size for storage, size in storages.items() if storage not in weights)


def _storage(tensor: Tensor) -> int:
    """An id of the storage a tensor lies in. (All storages of no bytes share one address.)"""
    return int(tensor.untyped_storage()._cdata)


@contextmanager
def _as_in_training(model: LanguageModel) -> Iterator[None]:
    """Inside, the model is in training mode; the state of torch's generator is restored after."""
    was_training = model.training
    with noise.forked():
        model.train()
        try:
            yield
        finally:
            model.train(was_training)


def _window(model: LanguageModel) -> Tensor:
    return torch.zeros(1, model.context, dtype=torch.long, device=next(model.parameters()).device)


def optimizer_bytes(optimizer: torch.optim.Optimizer) -> int:
    """Bytes of an optimizer's state, which is empty before the first step."""

    def count(node: Any) -> int:
        if isinstance(node, Tensor):
            return node.nbytes
        if isinstance(node, dict):
            return sum(count(child) for child in node.values())
        if isinstance(node, list):
            return sum(count(child) for child in node)
        return 0

    return sum(count(state) for state in optimizer.state.values())


def describe(
    model: LanguageModel,
    optimizer: torch.optim.Optimizer,
    batch: int,
    microbatch: int,
    precision: str,
) -> RunSize:
    """A run's size, counted on its model. `microbatch` windows of a batch go through together."""
    activations = activation_bytes(model, microbatch, precision)
    return described(model, optimizer, batch, forward_flops(model), activations)


def described(
    model: LanguageModel,
    optimizer: torch.optim.Optimizer,
    batch: int,
    flops: int | None,
    activations: int | None,
) -> RunSize:
    """The same from known FLOPs per token and bytes of activations; None where not counted."""
    weights = sum(parameter.nbytes for parameter in model.parameters())
    return RunSize(
        width=model.width,
        blocks=len(model.blocks),
        batch=batch,
        groups=_groups(optimizer),
        parameters=parameters_by_part(model),
        forward_flops_per_token=flops,
        bytes=MemoryBytes(weights=weights, gradients=weights, activations=activations),
    )


def _groups(optimizer: torch.optim.Optimizer) -> dict[str, GroupSize]:
    """The parameter groups by name; a group of the same name with another rate gets a number."""
    sizes: dict[str, GroupSize] = {}
    count: Counter[str] = Counter()
    for group in optimizer.param_groups:
        name = group["name"]
        count[name] += 1
        title = name if count[name] == 1 else f"{name} {count[name]}"
        sizes[title] = _group(group)
    return sizes


def _group(group: dict[str, Any]) -> GroupSize:
    return GroupSize(
        tensors=len(group["params"]),
        parameters=sum(parameter.numel() for parameter in group["params"]),
        learning_rate=group["lr"],
        weight_decay=group["decay"],
    )


def lines(size: RunSize) -> Iterator[str]:
    """A run's size in words, a line each."""
    total = sum(size.parameters.values())
    by_part = ", ".join(f"{part} {count:,}" for part, count in size.parameters.items())
    yield f"width {size.width}, {size.blocks} blocks, batches of {size.batch} windows"
    yield f"{total:,} parameters: {by_part}"
    for name, group in size.groups.items():
        plural = "s" if group.tensors != 1 else ""
        yield (
            f"group {name}: {group.tensors} tensor{plural}, {group.parameters:,} parameters,"
            f" learning rate {group.learning_rate:.6g}, weight decay {group.weight_decay:.6g}"
        )
    counted = size.bytes.counted()
    megabytes = ", ".join(f"{name} {count / 1e6:,.1f}" for name, count in counted.items())
    flops = size.forward_flops_per_token
    forward = "FLOPs not counted" if flops is None else f"{flops:,} FLOPs for each token forward"
    yield f"{forward}; megabytes: {megabytes}"


def too_large(size: RunSize, device: str) -> str | None:
    """A line that says that a run does not fit into this machine's memory; None where it does.

    None too for another device than the CPU, whose memory is not known here.
    """
    counted = size.bytes.counted()
    needed, available = sum(counted.values()), memory_bytes()
    if device != "cpu" or needed <= available:
        return None
    names = ", ".join(name for name, count in counted.items() if count)
    return (
        f"this does not fit: {names} come to {needed / 1e9:,.1f} GB, and this machine has"
        f" {available / 1e9:,.1f} GB of memory; fewer windows at once (train.batch,"
        " train.gradient_accumulation), a shorter train.context or a smaller model need less"
    )
