"""The model as it is built: its modules inside one another, what flows where, where it is written.

The model runs once on BOS tokens, so shapes and FLOPs are what the code does as the page asks it:
in evaluation, where a mixture computes all its experts.
"""

import inspect
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from lmlab.explorer.subject import Subject
from lmlab.model import places
from lmlab.model.models.base import LanguageModel, parameter_count
from lmlab.model.places import Place

PACKAGE = Path(__file__).parents[1]
PROBE = 7
"""Tokens of the run that shows shapes, a number that no size has."""


def structure(subject: Subject) -> dict[str, Any]:
    """The model as a tree: of each module its name, class, file and line, what its docstring says,
    parameters, FLOPs for each token of a full window, the shapes of its weights, and its places
    with the shape of what flows there.
    """
    model = subject.model
    return _module(model, "", model.choice.name, _flops(model), _shapes(model))


@torch.no_grad()
def weights(subject: Subject, moment: int) -> dict[str, dict[str, float | None]]:
    """Of each parameter at a moment: `rms`, the root of its mean square, and `moved`, the length of
    its way from the first moment as a share of its length there; None where that was 0.
    """
    first = {name: value.clone() for name, value in subject.at(0).named_parameters()}
    found: dict[str, dict[str, float | None]] = {}
    for name, value in subject.at(moment).named_parameters():
        was = float(first[name].double().norm())
        way = float((value.double() - first[name].double()).norm())
        rms = float(value.double().square().mean().sqrt())
        found[name] = {"rms": rms, "moved": way / was if was else None}
    return found


def _module(
    module: nn.Module, path: str, name: str, flops: dict[str, float], shapes: dict[str, list[str]]
) -> dict[str, Any]:
    prefix = f"{path}." if path else ""
    inside = [
        _module(child, prefix + own, own, flops, shapes)
        for own, child in _children(module)
        if not isinstance(child, Place)
        and (parameter_count(child) or (path and _is_ours(child)))  # a block, not the whole model
    ]
    deeper = tuple(f"{prefix}{each['name']}." for each in inside)
    own_places = {
        place: shape
        for place, shape in shapes.items()
        if place.startswith(prefix) and not place.startswith(deeper)
    }
    return {
        "name": name,
        "path": path,
        "class": type(module).__name__,
        "parameters": parameter_count(module),
        "flops": round(flops.get(path, 0.0)),
        "weights": {
            own: list(weight.shape) for own, weight in module.named_parameters(recurse=False)
        },
        "places": own_places,
        "inside": inside,
        **_written(module),
    }


def _children(module: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """The modules in it by name, those of a list each by itself."""
    for name, child in module.named_children():
        if isinstance(child, nn.ModuleList):
            for number, each in enumerate(child):
                yield f"{name}.{number}", each
        else:
            yield name, child


def _is_ours(module: nn.Module) -> bool:
    """Whether a module is written in the project, and not torch's."""
    return not type(module).__module__.startswith("torch.")


def _written(module: nn.Module) -> dict[str, str]:
    """Where a module's class is written and what is said of it there; nothing for torch's."""
    kind = type(module)
    if not _is_ours(module):
        return {"file": "", "doc": ""}
    source = Path(inspect.getsourcefile(kind) or "")
    _, line = inspect.getsourcelines(kind)
    within = source.relative_to(PACKAGE) if source.is_relative_to(PACKAGE) else Path(source.name)
    home = inspect.getmodule(kind)
    said = [inspect.getdoc(home) or "", kind.__doc__ or ""]
    return {
        "file": f"src/lmlab/{within.as_posix()}:{line}",
        "doc": "\n\n".join(inspect.cleandoc(each) for each in said if each),
    }


@torch.no_grad()
def _flops(model: LanguageModel) -> dict[str, float]:
    """Of a forward pass for each token of a full window, by the module's path."""
    tokens_BT = torch.zeros(1, model.context, dtype=torch.long)
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        model(tokens_BT)
    root = type(model).__name__
    found: dict[str, float] = {}
    for path, counts in counter.get_flop_counts().items():
        own = path.removeprefix(root).removeprefix(".")
        if path != "Global":
            found[own] = sum(counts.values()) / model.context
    return found


@torch.no_grad()
def _shapes(model: LanguageModel) -> dict[str, list[str]]:
    """Of what flows at every place for one text of T tokens, such as T, 128."""
    tokens_BT = torch.zeros(1, PROBE, dtype=torch.long)
    with places.record(model) as states:
        model(tokens_BT)
    return {place: _sizes(state) for place, state in states.items()}


def _sizes(state: Tensor) -> list[str]:
    return ["T" if size == PROBE else str(size) for size in state.shape[1:]]
