"""What a model weighs and what it costs: parameters by part, FLOPs for each token, memory for each
window.

Counted on the model itself with one window of text, by torch's own table of what each operation
costs.
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

from lmlab.model import noise
from lmlab.model.device import memory_bytes, multiplying_in
from lmlab.model.models.base import LanguageModel, next_token_loss

BACKWARD = 2
"""A backward pass costs about twice a forward pass: a product of matrices has two gradients, each a
product of that size.
"""


def training_flops(forward: float, tokens: float) -> float:
    """FLOPs of learning from `tokens` by backpropagation, with `forward` of them for each token.

    Other learning rules may cost more or less; the probe `cost` measures them.
    """
    return (1 + BACKWARD) * forward * tokens


class TooMuch(Exception):  # noqa: N818 (a bound that was asked for, not a fault)
    """A pass takes more than it was allowed to."""


class _Flops(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Adds up the cost of every operation below it. (torch's FlopCounterMode does too, and takes 2
    s to load a compiler.)

    Raises TooMuch at more than `most` FLOPs, or more than `most_steps` calls of torch.
    """

    def __init__(self, most: float, most_steps: float) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.total, self.steps, self.most, self.most_steps = 0, 0, most, most_steps

    def __torch_dispatch__(
        self, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        self.steps += 1
        if self.total > self.most or self.steps > self.most_steps:
            raise TooMuch
        result = function(*args, **(kwargs or {}))
        cost = flop_registry.get(function.overloadpacket)
        if cost is not None:
            self.total += cost(*args, **(kwargs or {}), out_val=result)
        return result


def parameters_by_part(model: LanguageModel) -> dict[str, int]:
    """How many numbers are learned in each of the model's parts, those of the same name in all
    blocks taken together.
    """
    counts: Counter[str] = Counter()
    for name, parameter in model.named_parameters():
        path = name.split(".")
        inside = path[2:] if path[0] == "blocks" else path  # blocks.3.attention.out.weight
        counts[inside[0]] += parameter.numel()
    return dict(counts)


def forward_flops(model: LanguageModel) -> int:
    """FLOPs of a forward pass for each token of a full window.

    A multiplication and an addition are two. Products of matrices and convolutions are counted,
    attention as if nothing were masked; what works on each number alone is not.
    """
    return window_flops(model)[0] // model.context


def window_flops(
    model: LanguageModel, most: float = inf, most_steps: float = inf
) -> tuple[int, int]:
    """`forward_flops` of a full window, and in how many calls of torch. Raises TooMuch where either
    is more.
    """
    flops = _Flops(most, most_steps)
    # of attention's forms the one that is all products
    with _as_in_training(model), flops, torch.no_grad(), sdpa_kernel(SDPBackend.MATH):
        model(_window(model))
    return flops.total, flops.steps


def activation_bytes(model: LanguageModel, windows: int = 1, precision: str = "float32") -> int:
    """Bytes that so many full windows at once keep for the backward pass, the weights apart."""
    one, two = (kept_bytes(model, rows, precision) for rows in (1, 2))
    return of_windows(one, two, windows)


def of_windows(one: int, two: int, windows: int) -> int:
    """The bytes kept of so many windows, from those kept of one and of two."""
    return one + (windows - 1) * (
        two - one
    )  # some is kept but once: masks, weights in lower precision


class _Kept:
    """A tensor that autograd has saved; it goes when autograd lets go of it."""

    def __init__(self, tensor: Tensor) -> None:
        self.tensor = tensor


def kept_bytes(model: LanguageModel, windows: int, precision: str) -> int:
    """`activation_bytes`, measured with all windows."""
    saved: WeakSet[_Kept] = WeakSet()

    def keep(tensor: Tensor) -> _Kept:
        kept = _Kept(tensor.detach())  # with its history it would keep itself
        saved.add(kept)
        return kept

    window = _window(model).expand(windows, -1)
    hooks = torch.autograd.graph.saved_tensors_hooks(keep, lambda kept: kept.tensor)
    with _as_in_training(model), multiplying_in(precision, window.device), hooks:
        loss = next_token_loss(model(window), window)
    weights = {_storage(parameter) for parameter in model.parameters()}
    storages = {_storage(kept.tensor): kept.tensor.untyped_storage().nbytes() for kept in saved}
    del loss  # until here it held all that was kept
    return sum(size for storage, size in storages.items() if storage not in weights)


def _storage(tensor: Tensor) -> int:
    """Which storage a tensor lies in. (Its address says less: storages without any bytes share
    one.)
    """
    return int(tensor.untyped_storage()._cdata)


@contextmanager
def _as_in_training(model: LanguageModel) -> Iterator[None]:
    """In training mode, where a model may work otherwise than in evaluation; chance is left as it
    was.
    """
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
    """Bytes of what an optimizer remembers; nothing before its first step."""

    def count(node: Any) -> int:
        if isinstance(node, Tensor):
            return node.nbytes
        children = (
            node.values() if isinstance(node, dict) else node if isinstance(node, list) else ()
        )
        return sum(count(child) for child in children)

    return sum(count(state) for state in optimizer.state.values())


def describe(
    model: LanguageModel, optimizer: torch.optim.Optimizer, batch: int, at_once: int, precision: str
) -> dict[str, Any]:
    """A run's size as plain values for JSON: what was derived, what is learned, and what a step
    costs.

    `at_once` windows of each batch go through the model together.
    """
    kept = activation_bytes(model, at_once, precision)
    return described(model, optimizer, batch, forward_flops(model), kept)


def described(
    model: LanguageModel,
    optimizer: torch.optim.Optimizer,
    batch: int,
    flops: int | None,
    activations: int | None,
) -> dict[str, Any]:
    """The same with what a pass costs given: FLOPs for each token forward and bytes kept, None
    where not counted.
    """
    return {
        "width": model.width,
        "blocks": len(model.blocks),
        "batch": batch,
        "groups": _groups(optimizer),
        "parameters": parameters_by_part(model),
        "forward_flops_per_token": flops,
        "bytes": {
            "weights": sum(parameter.nbytes for parameter in model.parameters()),
            "gradients": sum(parameter.nbytes for parameter in model.parameters()),
            "activations": activations,
        },
    }


def _groups(optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """Those of the same name but another learning rate are numbered."""
    described: dict[str, Any] = {}
    for group in optimizer.param_groups:
        number = sum(name.split(" ")[0] == group["name"] for name in described)
        described[f"{group['name']} {number + 1}" if number else group["name"]] = _group(group)
    return described


def _group(group: dict[str, Any]) -> dict[str, Any]:
    return {
        "tensors": len(group["params"]),
        "parameters": sum(parameter.numel() for parameter in group["params"]),
        "learning_rate": group["lr"],
        "weight_decay": group["decay"],
    }


def lines(size: dict[str, Any]) -> Iterator[str]:
    """A description in words, a line each."""
    total = sum(size["parameters"].values())
    yield f"width {size['width']}, {size['blocks']} blocks, batches of {size['batch']} windows"
    yield f"{total:,} parameters: " + ", ".join(
        f"{name} {count:,}" for name, count in size["parameters"].items()
    )
    for name, group in size["groups"].items():
        yield (
            f"group {name}: {group['tensors']} tensor{'s' * (group['tensors'] != 1)},"
            f" {group['parameters']:,} parameters,"
            f" learning rate {group['learning_rate']:.6g}, weight decay {group['weight_decay']:.6g}"
        )
    megabytes = ", ".join(
        f"{what} {count / 1e6:,.1f}" for what, count in size["bytes"].items() if count is not None
    )
    flops = size["forward_flops_per_token"]
    forward = "FLOPs not counted" if flops is None else f"{flops:,} FLOPs for each token forward"
    yield f"{forward}; megabytes: {megabytes}"


def too_large(size: dict[str, Any], device: str) -> str | None:
    """A line that says that this does not fit into the machine's memory; None where it does or a
    GPU's counts.
    """
    needed, there = sum(filter(None, size["bytes"].values())), memory_bytes()
    if device != "cpu" or needed <= there:
        return None
    return (
        f"this does not fit: {', '.join(name for name, count in size['bytes'].items() if count)}"
        " come to"
        f" {needed / 1e9:,.1f} GB, and this machine has {there / 1e9:,.1f} GB of memory; fewer"
        " windows at once"
        " (train.batch, train.gradient_accumulation), a shorter train.context or a smaller model"
        " need less"
    )
