"""What a model comes to, told without making it: on torch's device `meta`, whose tensors have
shapes and no storage.

A pass is counted on a model of few blocks, real where that is quick and otherwise with fake
tensors, and extended to all: what it costs is a line in the number of blocks and, in models that
loop over the window, at most a parabola in the tokens.
"""

import inspect
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cached_property
from math import inf, prod
from typing import Any

import torch
from torch.overrides import TorchFunctionMode

from lmlab.core.errors import UserError
from lmlab.core.registry import Choice
from lmlab.model import noise
from lmlab.model.device import gains_by_bfloat16, memory_bytes
from lmlab.model.models import base as models
from lmlab.model.models.base import LanguageModel
from lmlab.training import cost as sizing
from lmlab.training import step as stepping
from lmlab.training.learning_rules.base import LearningRule
from lmlab.training.step import TrainParams

MOST_MODULES = 20_000
"""torch makes about ten thousand a second, and each takes some kilobytes besides its weights."""
MOST_BYTES = 2**50
"""Of one tensor. Beyond, torch soon can no longer count them."""
CUT_ABOVE = 4
"""Blocks up to which a model is looked at as it is."""
QUICK_WEIGHTS, QUICK_CONTEXT, QUICK_OPERATIONS, QUICK_STEPS = 3e7, 1024, 1e10, 30_000
"""What a real pass may come to: less than the 2 s that fake tensors need to begin."""
FAKE_STEPS = 2_500
"""Calls of torch in a pass with fake tensors, each of which takes it a thousandth of a second; more
are not counted.
"""
TOKENS_A_STEP = 4
"""How many tokens a window is shortened by at a time, at least, where a model goes through it in a
loop.
"""

_DRAWING = ("normal_", "trunc_normal_", "uniform_", "kaiming_uniform_")
_BY_SHAPE = ("empty", "zeros", "ones", "rand", "randn")
_BY_SHAPE_AS = ("new_empty", "new_zeros", "new_ones")


class Weightless(TorchFunctionMode):
    """Leaves out what means nothing without storage, and refuses tensors that nobody has room for.

    First weights are not drawn and no ones placed (for that torch would load its compiler, 2 s).
    What is put on the CPU on purpose while a model is built is not where it is large. A tensor of
    MOST_BYTES or more is a UserError, whereas torch has several errors for it, by how much it is
    too large.
    """

    def __torch_function__(
        self,
        function: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        name = function.__name__
        if name in _DRAWING:
            return args[0] if args else kwargs["tensor"]
        shape = _shape(name, args, kwargs)
        if 4 * prod(shape) >= MOST_BYTES:
            raise UserError(
                "params.yaml: the model asks for a tensor of"
                f" {' x '.join(f'{side:,}' for side in shape)} numbers, which no"
                " machine has memory for; choose smaller sizes for the parts of the section train"
            )
        if name == "one_hot":
            return torch.empty(*shape, dtype=torch.long)
        if name == "eye":
            return torch.empty(*shape, dtype=kwargs.get("dtype"))
        if (
            prod(shape) > 2**20
            and str(kwargs.get("device")) == "cpu"
            and torch.get_default_device().type == "meta"
        ):
            return torch.empty(*shape)
        return function(*args, **kwargs)


def _shape(name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[int]:
    """Of the tensor that a function of torch is about to make; none where it is not one of those
    that parts use.
    """
    if name in _BY_SHAPE:
        sides = args or (kwargs.get("size", ()),)
    elif name in _BY_SHAPE_AS:
        sides = args[1:] or (kwargs.get("size", ()),)
    elif name in ("full", "new_full"):
        sides = args[1:2] if name == "new_full" else args[:1] or (kwargs.get("size", ()),)
    elif name == "eye":
        sides = args if len(args) > 1 else (*args, *args)
    elif name == "linspace":
        sides = args[2:3] or (kwargs["steps"],)
    elif name == "one_hot":
        sides = (*args[0].shape, args[1] if len(args) > 1 else kwargs["num_classes"])
    else:
        return []
    return [
        int(side) for part in sides for side in (part if isinstance(part, Sequence) else (part,))
    ]


@contextmanager
def without_storage() -> Iterator[None]:
    """Models, rules and optimizers built inside have shapes only."""
    with torch.device("meta"), Weightless(), _without_compiler():
        yield


@contextmanager
def _without_compiler() -> Iterator[None]:
    """Optimizers can be made without torch's compiler, which takes 2 s to load.

    torch loads it only to keep it out of one function, and notes at that function that it did so.
    """
    function, noted = inspect.unwrap(torch.optim.Optimizer.add_param_group), "__dynamo_disable"
    if hasattr(function, noted):
        yield
        return
    setattr(function, noted, function)
    try:
        yield
    finally:
        delattr(function, noted)


def block_count(choice: Choice) -> int | None:
    """How many blocks a model will have, by its options; None where these do not say."""
    return getattr(choice.options, "depth", None) or getattr(choice.options, "layers", None)


def cut(choice: Choice, blocks: int) -> Choice:
    """The same model with so many blocks, or as many as it has if these are fewer, and as wide as
    before.
    """
    there = block_count(choice)
    if there is None or there <= blocks:
        return choice
    changes = {"depth" if hasattr(choice.options, "depth") else "layers": blocks}
    if hasattr(choice.options, "whole_width"):
        changes["width"] = choice.options.whole_width
    # of a mixture each model lends about half of the blocks
    inner = {
        key: cut(part, (blocks + 1) // 2) if part.kind == "models" else part
        for key, part in choice.inner.items()
    }
    return Choice(choice.kind, choice.name, choice.options.model_copy(update=changes), inner)


def module_count(choice: Choice, vocabulary_size: int, context: int) -> int:
    """About how many modules a model will have: those of its models where it is built from
    others.
    """
    if inner := [part for part in choice.inner.values() if part.kind == "models"]:
        return sum(module_count(part, vocabulary_size, context) for part in inner)
    blocks = block_count(choice)
    counts = [_modules(cut(choice, few), vocabulary_size, context) for few in (1, 2)]
    return counts[0] if blocks is None else _extended([1, 2], counts, blocks)


def _modules(choice: Choice, vocabulary_size: int, context: int) -> int:
    with without_storage():
        return sum(1 for _ in models.build(choice, vocabulary_size, context).modules())


def refuse_endless(choice: Choice, vocabulary_size: int, context: int) -> None:
    """Raise UserError for a model of so many modules that making it would take minutes or more."""
    count = module_count(choice, vocabulary_size, context)
    if count > MOST_MODULES:
        raise UserError(
            f"params.yaml: models.{choice.name} comes to about {count:,} modules, and more than"
            f" {MOST_MODULES:,} are too"
            " many to make one by one; give it fewer blocks, or its blocks fewer experts"
        )


def refuse_too_large(params: TrainParams, model: LanguageModel, rule: LearningRule) -> None:
    """Raise UserError where not even what has to be there can be in this machine's memory.

    That is the weights and gradients, with what the rule keeps of its own, and one number for each
    that a window's tokens are inside the model. (On another device than the CPU only the weights
    have to fit here.)
    """
    there = memory_bytes()
    own = [*model.parameters(), *rule.parameters()]
    kept = sum(tensor.nbytes for tensor in [*own, *rule.buffers()])
    gradients = sum(parameter.nbytes for parameter in own) if params.device == "cpu" else 0
    if kept + gradients > there:
        raise UserError(
            f"params.yaml: train: weights and gradients would take {_gigabytes(kept + gradients)}"
            " GB, and this machine has"
            f" {_gigabytes(there)} GB of memory; make models.{params.model} smaller, or what its"
            " learning rule and"
            " interventions keep"
        )
    settled = params.settled(model.width, low=False)
    windows = settled.batch // settled.gradient_accumulation
    least = 4 * windows * params.context * model.width
    if params.device == "cpu" and least > there:
        raise UserError(
            f"params.yaml: train: {windows:,} windows at once of {params.context:,} tokens, each"
            f" {model.width:,} numbers,"
            f" take {_gigabytes(least)} GB in every block, and this machine has"
            f" {_gigabytes(there)} GB of memory; set"
            " train.batch or train.context lower, or train.gradient_accumulation higher"
        )


def _gigabytes(count: int) -> str:
    return f"{count / 1e9:,.1f}"


def describe(params: TrainParams, parts: dict[str, Choice], vocabulary_size: int) -> dict[str, Any]:
    """What `sizing.describe` says of a run that has begun, for one that has not. Raises UserError
    as building it would.
    """
    choice = parts["model"]
    refuse_endless(choice, vocabulary_size, params.context)
    with without_storage():
        _, run = stepping.begin(params, parts, vocabulary_size, torch.device("meta"))
    low = run.rule.backward and gains_by_bfloat16(torch.device(params.device))
    params = params.settled(run.model.width, low)
    weights = sum(parameter.nbytes for parameter in run.model.parameters())
    flops = activations = None
    counts = _of_all_blocks(choice, vocabulary_size, params) if weights < memory_bytes() else None
    if counts:
        total, one, two = counts
        flops = total // params.context
        activations = sizing.of_windows(one, two, params.batch // params.gradient_accumulation)
    return sizing.described(run.model, run.optimizer, params.batch, flops, activations)


Counts = tuple[int, int, int]
"""Operations of a forward pass of one window, and the bytes kept of one and of two; for the
backward pass.
"""


def _of_all_blocks(choice: Choice, vocabulary_size: int, params: TrainParams) -> Counts | None:
    """Counted on the whole model, or extended from two of few blocks. (The lowest block may be of
    its own kind.)
    """
    blocks = block_count(choice)
    if blocks and blocks > CUT_ABOVE and _alike(choice):
        few = [
            2 + blocks % 2 + more for more in (0, 2)
        ]  # as even as all: two models may take turns
        counts = [
            _of_window(cut(choice, number), vocabulary_size, params.context, params.precision)
            for number in few
        ]
        whole = [count for count in counts if count]
        return _extend(few, whole, blocks) if len(whole) == len(few) else None
    return _of_window(choice, vocabulary_size, params.context, params.precision)


def _alike(choice: Choice) -> bool:
    """Whether blocks keep as much each; those that look back ever farther do not."""
    return getattr(choice.options, "dilation", 1) == 1 and all(
        _alike(part) for part in choice.inner.values()
    )


def _of_window(choice: Choice, vocabulary_size: int, context: int, precision: str) -> Counts | None:
    """Of the whole window or, where a model loops over it, extended from three short ones, each
    longer by whole chunks.

    None where a pass takes too much even so, or depends on what the numbers are.
    """
    pass_of = _Pass(choice, vocabulary_size, precision)
    chunk = max([TOKENS_A_STEP, *_chunks(choice)])
    # Between these nothing changes that is done by halves, and something does that is done chunk by
    # chunk.
    more = 1 << (chunk - 1).bit_length()
    few = [context % chunk + times * chunk for times in (1, 2, 3)]
    try:
        if pass_of.is_quick(context):
            with suppress(sizing.TooMuch):
                return pass_of.counts(context)
        if context > 4 * more and pass_of.steps(4 * more) > pass_of.steps(3 * more):
            return _extend(few, [pass_of.counts(tokens) for tokens in few], context)
        return pass_of.counts(context, fake=True)
    except (
        sizing.TooMuch,
        RuntimeError,
    ):  # what torch says where shapes depend on numbers, or cannot be counted any more
        return None


@dataclass(frozen=True)
class _Pass:
    """Passes of a model of some windows: real where that is quick, else with fake tensors."""

    choice: Choice
    vocabulary_size: int
    precision: str

    @cached_property
    def weights(self) -> int:
        return models.parameter_count(self._outline)

    @cached_property
    def _outline(self) -> LanguageModel:
        with without_storage():
            return models.build(self.choice, self.vocabulary_size, context=2)

    def is_quick(self, tokens: int) -> bool:
        return (
            tokens <= QUICK_CONTEXT
            and self.weights <= QUICK_WEIGHTS
            and 2 * self.weights * tokens <= QUICK_OPERATIONS
        )

    def steps(self, tokens: int) -> int:
        """Calls of torch in a forward pass of one window. Raises TooMuch."""
        with self._model(tokens, fake=not self.is_quick(tokens)) as (model, bounds):
            return sizing.window_flops(model, *bounds)[1]

    def counts(self, tokens: int, fake: bool = False) -> Counts:
        """Raises TooMuch."""
        with self._model(tokens, fake or not self.is_quick(tokens)) as (model, bounds):
            total, _ = sizing.window_flops(model, *bounds)  # first, lest the others take too much
            one, two = (sizing.kept_bytes(model, windows, self.precision) for windows in (1, 2))
            return total, one, two

    @contextmanager
    def _model(
        self, tokens: int, fake: bool
    ) -> Iterator[tuple[LanguageModel, tuple[float, float]]]:
        """The model, and how many FLOPs in how many calls a pass of it may take."""
        if not fake:
            with noise.forked():
                model = models.build(self.choice, self.vocabulary_size, tokens)
            yield model, (QUICK_OPERATIONS, QUICK_STEPS)
            return
        if (
            sum(1 for _ in self._outline.modules()) > FAKE_STEPS
        ):  # of which each does something in a pass
            raise sizing.TooMuch
        from torch._subclasses.fake_tensor import (
            FakeTensorMode,
        )  # here, since only the largest models need it

        with FakeTensorMode(allow_non_fake_inputs=True):
            with Weightless():
                model = models.build(self.choice, self.vocabulary_size, tokens)
            yield model, (inf, FAKE_STEPS)


def _chunks(choice: Choice) -> Iterator[int]:
    """How many positions the loops of a model and its parts take at a time."""
    yield getattr(choice.options, "chunk", 64 if choice.name == "linear" else 1)
    for part in choice.inner.values():
        yield from _chunks(part)


def _extend(places: list[int], counts: Sequence[Counts], place: int) -> Counts:
    flops, one, two = (_extended(places, values, place) for values in zip(*counts, strict=True))
    return flops, one, two


def _extended(places: list[int], values: Sequence[int], place: int) -> int:
    """The polynomial through the values at evenly spaced places, elsewhere: exact in whole numbers
    (Newton's form).
    """
    steps, step = place - places[0], places[1] - places[0]
    first = values[1] - values[0]
    line = values[0] + first * steps // step
    if len(values) == 2:
        return line
    second = values[2] - 2 * values[1] + values[0]
    return line + second * steps * (steps - step) // (2 * step * step)
