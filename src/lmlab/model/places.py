"""Named places inside a model: look at what flows through them, or change it as it flows.

    with record(model, ["blocks.*.attention.pattern"]) as states:
        model(tokens_BT)
    with changed(model, {"blocks.0.feed_forward.units": lambda units_BTF: 0 * units_BTF}):
        model(tokens_BT)

Every model has the places `embedding` (what enters the first block), `blocks.<i>.input` and
`blocks.<i>.output` (the residual stream before and after a block) and `logits`. Between them lie
those that its layers declare by a `Place`, a module without weights whose name in the model is the
place's name: the weights of attention, what its heads read, the units of a feed-forward layer, the
state of a recurrence, the stream between two layers. `names` lists them all. (TransformerLens has
such points, `HookPoint`, Nanda & Bloom 2022; to replace one activation by another is activation
patching, Vig et al. 2020.)

Places are forward hooks of torch: nothing is computed for them while none is watched.
"""

import difflib
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from fnmatch import fnmatchcase
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from lmlab.core.errors import UserError

Change = Callable[[Tensor], Tensor]
"""What flows through a place, and what shall flow on: of the same shape."""
WRITTEN = ("head_outputs", "units", "state")
"""The last names of the places from which a layer writes to the residual stream."""


class Place(nn.Module):
    """y = x: a point inside a layer that can be looked at and changed under its name in the model.

    It is passed once in each call of the layer, with a tensor of shape (B, T, ...). Only attention
    weights have the shape (B, H, T, S), and an expert that is handed the tokens routed to it alone,
    as in training, has them in one row: (tokens, F).
    """

    def __init__(self) -> None:
        super().__init__()
        self.watchers = 0
        """How many records and changes are active here: what exists only to be looked at is not
        computed where there are none.
        """

    def forward(self, x: Tensor) -> Tensor:
        return x


def names(model: nn.Module) -> list[str]:
    """The places of a model, in the order in which its modules are listed."""
    return list(_places(model))


@contextmanager
def record(model: nn.Module, places: Iterable[str] | None = None) -> Iterator[dict[str, Tensor]]:
    """Inside, each call of the model writes what flows through the places into the dict.

    Places are given by name, or by a pattern in which `*` stands for anything; None means all. The
    tensors are those that flow on, with their graph, changes included, and a later call replaces
    them. The model's output stays the same to the last bit. So do all gradients, except that those
    of layers whose attention weights are recorded are the same up to rounding.

    Raises UserError for a name or a pattern that fits no place.
    """
    states: dict[str, Tensor] = {}

    def keeper(name: str) -> Callable[[Tensor], None]:
        return lambda x: states.update({name: x})

    chosen = names(model) if places is None else _named(_places(model), places)
    with watched(model, {name: keeper(name) for name in chosen}):
        yield states


@contextmanager
def watched(model: nn.Module, functions: Mapping[str, Callable[[Tensor], None]]) -> Iterator[None]:
    """Inside, each function is called with what flows through its place, at every pass.

    It is what `record` is made of, for what a dict of the latest states cannot tell.
    """
    every_place = _places(model)

    def passing(function: Callable[[Tensor], None]) -> Change:
        def pass_on(x: Tensor) -> Tensor:
            function(x)
            return x

        return pass_on

    with ExitStack() as hooks:
        for pattern, function in functions.items():
            for name in _named(every_place, [pattern]):
                hooks.enter_context(every_place[name].hooked(passing(function), first=False))
        yield


@contextmanager
def changed(model: nn.Module, changes: Mapping[str, Change]) -> Iterator[None]:
    """Inside, each place passes on what its function makes of what flows there.

    The function gets a copy, which it may alter in place, and returns a tensor of the same shape;
    it is converted to the copy's precision. Gradients flow through it. A name may be a pattern, as
    in `record`. Where several fit one place, their functions are applied in the order given; where
    contexts are nested, the innermost comes first.

    Raises UserError for a name or a pattern that fits no place, for what is no function, and in the
    call of the model where what a function returns has another shape, is complex where what flows
    there is real, or is no tensor.
    """
    every_place = _places(model)
    in_order: dict[str, list[Change]] = {}
    for pattern, function in changes.items():
        for name in _named(every_place, [pattern]):
            in_order.setdefault(name, []).append(_checked(name, function))
    with ExitStack() as hooks:
        for name, functions in in_order.items():
            hooks.enter_context(every_place[name].hooked(_one_by_one(functions), first=True))
        yield


def _one_by_one(functions: list[Change]) -> Change:
    """The first function, then the second of what it returned, and so on."""

    def change(x: Tensor) -> Tensor:
        for function in functions:
            x = function(x)
        return x

    return change


def _checked(name: str, function: Change) -> Change:
    """The function with its result brought to the shape's and precision's due, or refused."""
    if not callable(function):
        raise UserError(
            f"place {name}: the change is no function but of type {type(function).__name__}; give a"
            " function that takes what flows there and returns what shall flow on"
        )

    def change(x: Tensor) -> Tensor:
        y = function(x.clone())
        if not isinstance(y, Tensor):
            raise UserError(
                f"place {name}: the change returned {type(y).__name__}; it must return a tensor of"
                f" shape {tuple(x.shape)}"
            )
        if y.shape != x.shape:
            raise UserError(
                f"place {name}: the change returned shape {tuple(y.shape)}; what flows there has"
                f" shape {tuple(x.shape)}"
            )
        if not torch.can_cast(y.dtype, x.dtype):
            raise UserError(
                f"place {name}: the change returned numbers of type {y.dtype}; what flows there is"
                f" {x.dtype}"
            )
        return y.to(x)

    return change


class _Hookable:
    """A place as hooks reach it: the output of a module or its first input."""

    def __init__(self, module: nn.Module, is_input: bool) -> None:
        self.module, self.is_input = module, is_input

    @contextmanager
    def hooked(self, function: Change, first: bool) -> Iterator[None]:
        """Inside, what flows there passes through the function, before or after those of others."""
        handle = self._register(function, first)
        place = self.module if isinstance(self.module, Place) else Place()
        place.watchers += 1
        try:
            yield
        finally:
            handle.remove()
            place.watchers -= 1

    def _register(self, function: Change, first: bool) -> RemovableHandle:
        if self.is_input:

            def on_input(module: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
                return function(inputs[0]), *inputs[1:]

            return self.module.register_forward_pre_hook(on_input, prepend=first)

        def on_output(module: nn.Module, inputs: tuple[Any, ...], output: Tensor) -> Tensor:
            return function(output)

        return self.module.register_forward_hook(on_output, prepend=first)


def _places(model: nn.Module) -> dict[str, _Hookable]:
    """The places by name, from the embedding to the logits."""
    blocks: list[nn.Module] = list(getattr(model, "blocks", []))
    declared = [name for name, module in model.named_modules() if isinstance(module, Place)]
    places: dict[str, _Hookable] = {}
    if blocks:
        places["embedding"] = _Hookable(blocks[0], is_input=True)
    for number, block in enumerate(blocks):
        prefix = f"blocks.{number}."
        places[f"{prefix}input"] = _Hookable(block, is_input=True)
        for name in declared:
            if name.startswith(prefix):
                places[name] = _Hookable(model.get_submodule(name), is_input=False)
        places[f"{prefix}output"] = _Hookable(block, is_input=False)
    for name in declared:
        if name not in places:
            places[name] = _Hookable(model.get_submodule(name), is_input=False)
    places["logits"] = _Hookable(model, is_input=False)
    return places


def _named(every_place: Mapping[str, _Hookable], patterns: Iterable[str]) -> list[str]:
    """The places that fit the names and patterns, each once, in the order of the model."""
    chosen: set[str] = set()
    if isinstance(patterns, str) or not isinstance(patterns, Iterable):
        patterns = [patterns]
    for pattern in patterns:
        if not isinstance(pattern, str):
            raise UserError(
                f"{pattern!r} is no name of a place; names are text, such as blocks.0.output"
            )
        fitting = [name for name in every_place if fnmatchcase(name, pattern)]
        if not fitting:
            raise _no_such_place(pattern, list(every_place))
        chosen.update(fitting)
    return [name for name in every_place if name in chosen]


def _no_such_place(pattern: str, known: list[str]) -> UserError:
    """The error for a name, with the nearest there is if one is near, or for a pattern."""
    is_pattern = any(character in pattern for character in "*?[")
    nearest = [] if is_pattern else difflib.get_close_matches(pattern, known, n=1)
    hint = f"the nearest is {nearest[0]}, and " if nearest else ""
    what = f"place fits {pattern}" if is_pattern else f"place {pattern or repr(pattern)}"
    return UserError(
        f"no {what} in this model; {hint}lmlab.model.places.names(model) lists them all"
    )
