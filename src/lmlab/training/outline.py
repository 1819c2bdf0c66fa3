"""The size of a run without building it: on torch's device `meta`, whose tensors have no storage.

A forward pass is counted on a model of few blocks and extended to all of them: its cost is linear
in the number of blocks and, in models that loop over the window, at most quadratic in the tokens.
The pass is a real one where that is quick, otherwise one with torch's fake tensors.
"""

import inspect
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cached_property
from math import inf, prod
from typing import Any, NamedTuple

import torch
from torch.overrides import TorchFunctionMode

from lmlab.core.errors import UserError
from lmlab.core.registry import Choice
from lmlab.model import noise
from lmlab.model.device import memory_bytes, trains_faster_in_bfloat16
from lmlab.model.models import base as models
from lmlab.model.models.base import LanguageModel
from lmlab.model.record import RunSize
from lmlab.training import cost as sizing
from lmlab.training import step as stepping
from lmlab.training.learning_rules.base import LearningRule
from lmlab.training.step import TrainParams

MOST_MODULES = 20_000
"""torch builds about ten thousand a second, and each takes some kilobytes besides its weights."""
MOST_BYTES = 2**50
"""Of one tensor. Much beyond, torch cannot count them."""
CUT_ABOVE = 4
"""A model of more blocks is counted on two smaller ones."""
QUICK_WEIGHTS, QUICK_CONTEXT, QUICK_FLOPS, QUICK_CALLS = 3e7, 1024, 1e10, 30_000
"""The most of a real pass: it takes less than the 2 s that fake tensors need to load."""
FAKE_CALLS = 2_500
"""The most calls of torch in a pass with fake tensors, each of which takes about a millisecond."""
TOKENS_A_STEP = 4
"""The least difference between the short windows that a long one is extended from."""

_RANDOM_FILLS = ("normal_", "trunc_normal_", "uniform_", "kaiming_uniform_")
_BY_SHAPE = ("empty", "zeros", "ones", "rand", "randn")
_BY_SHAPE_AS = ("new_empty", "new_zeros", "new_ones")


class Weightless(TorchFunctionMode):
    """Skips operations that mean nothing without storage, and refuses impossibly large tensors.

    Weights are not initialised, and no one-hot or identity matrix is filled: torch would load its
    compiler for these on `meta`, which takes 2 s. A large tensor that a model puts on the CPU
    explicitly goes to `meta` as well. A tensor of MOST_BYTES or more is one UserError, where torch
    would raise errors of several kinds.
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
        if name in _RANDOM_FILLS:
            return args[0] if args else kwargs["tensor"]
        shape = _shape(name, args, kwargs)
        numbers = prod(shape)
        if 4 * numbers >= MOST_BYTES:
            sides = " x ".join(f"{side:,}" for side in shape)
            raise UserError(
                f"params.yaml: the model asks for a tensor of {sides} numbers, which no machine has"
                " memory for; choose smaller sizes for the parts of the section train"
            )
        if name == "one_hot":
            return torch.empty(*shape, dtype=torch.long)
        if name == "eye":
            return torch.empty(*shape, dtype=kwargs.get("dtype"))
        is_large = numbers > 2**20
        asks_for_cpu = str(kwargs.get("device")) == "cpu"
        if is_large and asks_for_cpu and torch.get_default_device().type == "meta":
            return torch.empty(*shape)
        return function(*args, **kwargs)


def _shape(name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[int]:
    """The shape of the tensor that a function of torch is about to make.

    Empty where the function is none of the factories that parts use.
    """
    if name in _BY_SHAPE:
        sides = args or (kwargs.get("size", ()),)
    elif name in _BY_SHAPE_AS:
        sides = args[1:] or (kwargs.get("size", ()),)
    elif name == "full":
        sides = args[:1] or (kwargs.get("size", ()),)
    elif name == "new_full":
        sides = args[1:2]
    elif name == "eye":
        sides = args if len(args) > 1 else (*args, *args)
    elif name == "linspace":
        sides = args[2:3] or (kwargs["steps"],)
    elif name == "one_hot":
        sides = (*args[0].shape, args[1] if len(args) > 1 else kwargs["num_classes"])
    else:
        return []
    shape: list[int] = []
    for side in sides:
        shape += map(int, side) if isinstance(side, Sequence) else [int(side)]
    return shape


@contextmanager
def without_storage() -> Iterator[None]:
    """Models, rules and optimizers built inside have shapes but no storage."""
    with torch.device("meta"), Weightless(), _without_compiler():
        yield


@contextmanager
def _without_compiler() -> Iterator[None]:
    """Inside, optimizers are built without torch's compiler, which takes 2 s to load.

    torch loads it only to exempt one function from compilation, and marks that function then. The
    mark is set here beforehand.
    """
    function = inspect.unwrap(torch.optim.Optimizer.add_param_group)
    mark = "__dynamo_disable"
    if hasattr(function, mark):
        yield
        return
    setattr(function, mark, function)
    try:
        yield
    finally:
        delattr(function, mark)


def block_count(choice: Choice) -> int | None:
    """How many blocks a model has by its options; None where these do not say."""
    return getattr(choice.options, "depth", None) or getattr(choice.options, "layers", None)


def cut(choice: Choice, blocks: int) -> Choice:
    """The same model, as wide as before, with at most so many blocks."""
    whole = block_count(choice)
    if whole is None or whole <= blocks:
        return choice
    key = "depth" if hasattr(choice.options, "depth") else "layers"
    changes = {key: blocks}
    if hasattr(choice.options, "whole_width"):
        changes["width"] = choice.options.whole_width
    half = (blocks + 1) // 2  # of a model made of two, each gives about half of the blocks
    inner = {
        key: cut(part, half) if part.kind == "models" else part
        for key, part in choice.inner.items()
    }
    return Choice(choice.kind, choice.name, choice.options.model_copy(update=changes), inner)


def module_count(choice: Choice, vocabulary_size: int, context: int) -> int:
    """About how many modules a model has; of one built from other models, how many those have."""
    inner = [part for part in choice.inner.values() if part.kind == "models"]
    if inner:
        return sum(module_count(part, vocabulary_size, context) for part in inner)
    counts = [_modules(cut(choice, blocks), vocabulary_size, context) for blocks in (1, 2)]
    blocks = block_count(choice)
    return counts[0] if blocks is None else _extrapolated([1, 2], counts, blocks)


def _modules(choice: Choice, vocabulary_size: int, context: int) -> int:
    with without_storage():
        return sum(1 for _ in models.build(choice, vocabulary_size, context).modules())


def refuse_endless(choice: Choice, vocabulary_size: int, context: int) -> None:
    """Raise UserError for a model of so many modules that building it would take minutes."""
    count = module_count(choice, vocabulary_size, context)
    if count > MOST_MODULES:
        raise UserError(
            f"params.yaml: models.{choice.name} comes to about {count:,} modules, and more than"
            f" {MOST_MODULES:,} are too many to make one by one; give it fewer blocks, or its"
            " blocks fewer experts"
        )


def refuse_too_large(params: TrainParams, model: LanguageModel, rule: LearningRule) -> None:
    """Raise UserError where not even the least that a run needs fits into this machine's memory.

    That is the weights, what the rule stores, their gradients, and one activation of the model's
    width for each token of the windows that go through it at once. On another device than the CPU
    only weights and what the rule stores have to fit here.
    """
    available = memory_bytes()
    parameters = [*model.parameters(), *rule.parameters()]
    stored = sum(tensor.nbytes for tensor in [*parameters, *rule.buffers()])
    on_cpu = params.device == "cpu"
    gradients = sum(parameter.nbytes for parameter in parameters) if on_cpu else 0
    if stored + gradients > available:
        raise UserError(
            "params.yaml: train: weights and gradients would take"
            f" {_gigabytes(stored + gradients)} GB, and this machine has {_gigabytes(available)} GB"
            f" of memory; make models.{params.model} smaller, or what its learning rule and"
            " interventions keep"
        )
    settled = params.settled(model.width, False, rule.shares_population)
    windows = settled.batch // settled.gradient_accumulation
    activations = 4 * windows * params.context * model.width
    if on_cpu and activations > available:
        raise UserError(
            f"params.yaml: train: {windows:,} windows at once of {params.context:,} tokens, each"
            f" {model.width:,} numbers, take {_gigabytes(activations)} GB in every block, and this"
            f" machine has {_gigabytes(available)} GB of memory; set train.batch or train.context"
            " lower, or train.gradient_accumulation higher"
        )


def _gigabytes(count: int) -> str:
    return f"{count / 1e9:,.1f}"


def describe(params: TrainParams, parts: dict[str, Choice], vocabulary_size: int) -> RunSize:
    """What `cost.describe` says of a run that has begun, for one that has not.

    Raises UserError as building the run would.
    """
    choice = parts["model"]
    refuse_endless(choice, vocabulary_size, params.context)
    with without_storage():
        run = stepping.begin(params, parts, vocabulary_size, torch.device("meta"))
    rule = run.rule
    bfloat16_helps = rule.backward and trains_faster_in_bfloat16(torch.device(params.device))
    settled = params.settled(run.model.width, bfloat16_helps, rule.shares_population)
    weights = sum(parameter.nbytes for parameter in run.model.parameters())
    cost = None
    if weights < memory_bytes():
        cost = _cost_of_all_blocks(choice, vocabulary_size, settled)
    if cost is None:
        return sizing.described(run.model, run.optimizer, settled.batch, None, None)
    microbatch = settled.batch // settled.gradient_accumulation
    activations = sizing.extended_bytes(cost.bytes_of_one, cost.bytes_of_two, microbatch)
    flops = cost.flops // settled.context
    return sizing.described(run.model, run.optimizer, settled.batch, flops, activations)


class PassCost(NamedTuple):
    """What passes of one and of two windows cost."""

    flops: int
    """Of a forward pass of one window."""
    bytes_of_one: int
    """Kept for the backward pass of one window."""
    bytes_of_two: int
    """Kept for the backward pass of two windows."""


def _cost_of_all_blocks(
    choice: Choice, vocabulary_size: int, params: TrainParams
) -> PassCost | None:
    """The cost of the whole model; where it is deep, extended from two with few blocks.

    Two, as the lowest block may be of a kind of its own. None where a pass cannot be counted.
    """
    blocks = block_count(choice)
    if not blocks or blocks <= CUT_ABOVE or not _blocks_are_alike(choice):
        return _cost_of_window(choice, vocabulary_size, params.context, params.precision)
    smallest = 2 + blocks % 2  # even if the whole is even: two kinds of block may alternate
    few = [smallest, smallest + 2]
    costs = []
    for count in few:
        smaller = cut(choice, count)
        cost = _cost_of_window(smaller, vocabulary_size, params.context, params.precision)
        if cost is None:
            return None
        costs.append(cost)
    return _extrapolated_cost(few, costs, blocks)


def _blocks_are_alike(choice: Choice) -> bool:
    """Whether all blocks keep as much; those whose receptive fields grow do not."""
    dilation = getattr(choice.options, "dilation", 1)
    return dilation == 1 and all(_blocks_are_alike(part) for part in choice.inner.values())


def _cost_of_window(
    choice: Choice, vocabulary_size: int, context: int, precision: str
) -> PassCost | None:
    """The cost of a whole window; where a model loops over it, extended from three short ones.

    The short ones differ by whole chunks. None where even so a pass takes too much, or where its
    shapes depend on the values of tensors.
    """
    passes = _Passes(choice, vocabulary_size, precision)
    chunk = max([TOKENS_A_STEP, *_chunks(choice)])
    # a power of two: from 3 to 4 times it, what works by halving makes the same calls, and what
    # works chunk by chunk makes more
    step = 1 << (chunk - 1).bit_length()
    try:
        if passes.is_quick(context):
            with suppress(sizing.TooMuch):
                return passes.cost(context)
        loops = context > 4 * step and passes.calls(4 * step) > passes.calls(3 * step)
        if not loops:
            return passes.cost(context, fake=True)
        short = [context % chunk + times * chunk for times in (1, 2, 3)]
        return _extrapolated_cost(short, [passes.cost(tokens) for tokens in short], context)
    except (sizing.TooMuch, RuntimeError):
        # RuntimeError: torch's, where shapes depend on values or are too large to count
        return None


@dataclass(frozen=True)
class _Passes:
    """Passes of a model over windows: real ones where that is quick, else with fake tensors."""

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
        flops = 2 * self.weights * tokens
        return tokens <= QUICK_CONTEXT and self.weights <= QUICK_WEIGHTS and flops <= QUICK_FLOPS

    def calls(self, tokens: int) -> int:
        """Calls of torch in a forward pass of one window. Raises TooMuch."""
        with self._model(tokens, fake=not self.is_quick(tokens)) as (model, bounds):
            return sizing.window_flops(model, *bounds)[1]

    def cost(self, tokens: int, fake: bool = False) -> PassCost:
        """The cost of windows of so many tokens. Raises TooMuch."""
        with self._model(tokens, fake or not self.is_quick(tokens)) as (model, bounds):
            # first, as it is bounded and the others are not
            flops, _ = sizing.window_flops(model, *bounds)
            of_one = sizing.kept_bytes(model, 1, self.precision)
            of_two = sizing.kept_bytes(model, 2, self.precision)
            return PassCost(flops, of_one, of_two)

    @contextmanager
    def _model(
        self, tokens: int, fake: bool
    ) -> Iterator[tuple[LanguageModel, tuple[float, float]]]:
        """The model, and the most FLOPs and calls of torch that a pass of it may take."""
        if not fake:
            with noise.forked():
                model = models.build(self.choice, self.vocabulary_size, tokens)
            yield model, (QUICK_FLOPS, QUICK_CALLS)
            return
        modules = sum(1 for _ in self._outline.modules())
        if modules > FAKE_CALLS:  # each makes at least one call in a pass
            raise sizing.TooMuch
        # imported here, as only the largest models need it
        from torch._subclasses.fake_tensor import FakeTensorMode

        with FakeTensorMode(allow_non_fake_inputs=True):
            with Weightless():
                model = models.build(self.choice, self.vocabulary_size, tokens)
            yield model, (inf, FAKE_CALLS)


def _chunks(choice: Choice) -> Iterator[int]:
    """How many positions the loops of a model and its parts take at a time."""
    yield getattr(choice.options, "chunk", 64 if choice.name == "linear" else 1)
    for part in choice.inner.values():
        yield from _chunks(part)


def _extrapolated_cost(places: list[int], costs: Sequence[PassCost], place: int) -> PassCost:
    columns = zip(*costs, strict=True)
    return PassCost(*(_extrapolated(places, column, place) for column in columns))


def _extrapolated(places: list[int], values: Sequence[int], place: int) -> int:
    """The polynomial through two or three values at evenly spaced places, at another place.

    In Newton's form: v0 + d1 s + d2 s (s - 1) / 2, with s = (place - p0) / (p1 - p0) and d1, d2 the
    differences of first and second order. Exact in integers.
    """
    distance, spacing = place - places[0], places[1] - places[0]
    first = values[1] - values[0]
    line = values[0] + first * distance // spacing
    if len(values) == 2:
        return line
    second = values[2] - 2 * values[1] + values[0]
    return line + second * distance * (distance - spacing) // (2 * spacing * spacing)
