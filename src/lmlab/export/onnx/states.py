"""What a model keeps between calls, found by running it: the graph's states."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from itertools import product

import torch
from torch import Tensor

from lmlab.core.errors import UserError
from lmlab.model.layers.cache import Cache
from lmlab.model.models.base import LanguageModel

BATCH, PAST = "batch", "past"
TIME = 5
"""Tokens of the text by which states are tried."""
ROUNDING = 1e-4
"""Of the largest logit: what another order of the same sums may change."""
Key = tuple[int, str]
"""A block's number, and the name of a tensor in its cache."""


@dataclass(frozen=True)
class State:
    """One tensor of a cache, and its value before the first token."""

    block: int
    key: str
    dtype: torch.dtype
    shape: tuple[int | str, ...]
    """With BATCH for the batch, and PAST for the positions read where it grows with them."""
    initial: int
    """What fills it before the first token; it has no positions then where it grows."""

    @property
    def name(self) -> str:
        """Its name in the graph."""
        return f"blocks.{self.block}.{self.key.replace(' ', '_')}"

    @property
    def grows(self) -> bool:
        """Whether it grows with the positions read, up to the receptive field."""
        return PAST in self.shape

    def filled(self, batch: int, past: int = 0) -> Tensor:
        """The state with so many positions, all of them filled with the initial value."""
        sizes = {BATCH: batch, PAST: past}
        shape = [sizes[size] if isinstance(size, str) else size for size in self.shape]
        return torch.full(shape, self.initial, dtype=self.dtype)


class _Begun(int):
    """A number of positions that counts as some even where it is 0: a cache that is to be read."""

    def __bool__(self) -> bool:
        return True


def cache_of(model: LanguageModel, states: Mapping[State, Tensor], seen: int) -> list[Cache]:
    """A cache that holds these states after `seen` positions, other than 0."""
    cache = model.new_cache()
    for block in cache:
        block.seen = seen
    for state, tensor in states.items():
        cache[state.block].tensors[state.key] = tensor
    return cache


def find_states(model: LanguageModel) -> list[State]:
    """The states of a model in evaluation mode, in the order of its blocks.

    Of each is found: which of its dimensions is the batch, which grows with the positions read, and
    with which value the model computes the same, to rounding, as with an empty cache. What
    never holds a number is no state.

    Raises UserError where no value does that.
    """
    of_one, of_two, of_three = (_sizes(model, 2, time) for time in (1, 2, 3))
    of_more = _sizes(model, 3, 1)
    kept = [key for key, size in of_three.items() if size.numel()]
    changing = {key for key in kept if of_one[key] != of_two[key]}
    # where a position sees but one before its own, what grows has its full length after one token
    of_length_one = {key for key in kept if 1 in of_one[key][-2:-1]}
    dtypes = {key: _read(model, 2, 1)[key].dtype for key in kept}
    for growing, nothing in product(
        (changing, changing | of_length_one), (0, model.vocabulary_size)
    ):
        states = []
        for key in kept:
            shape = _shape(of_one[key], of_two[key], of_more[key], key in growing)
            fill = 0 if dtypes[key].is_floating_point else nothing
            states.append(State(*key, dtypes[key], shape, fill))
        if _are_empty(model, states):
            return states
    names = ", ".join(dict.fromkeys(key for _, key in kept))
    raise UserError(
        f"train.model: {model.choice.name} cannot be exported to ONNX: no initial value of what its"
        f" cache keeps ({names}) stands for an empty cache"
    )


def _read(model: LanguageModel, batch: int, time: int) -> dict[Key, Tensor]:
    """What the cache holds after so many tokens."""
    cache = model.new_cache()
    with torch.no_grad():
        model(_tokens(model, batch, time), cache)
    return {
        (number, name): tensor
        for number, block in enumerate(cache)
        for name, tensor in block.tensors.items()
    }


def _sizes(model: LanguageModel, batch: int, time: int) -> dict[Key, torch.Size]:
    return {key: tensor.shape for key, tensor in _read(model, batch, time).items()}


def _tokens(model: LanguageModel, batch: int, time: int) -> Tensor:
    rng = torch.Generator().manual_seed(0)
    return torch.randint(model.vocabulary_size, (batch, time), generator=rng)


def _shape(
    of_one: Iterable[int], of_two: Iterable[int], of_more: Iterable[int], grows: bool
) -> tuple[int | str, ...]:
    """The shape by those after one and two tokens, and after one in a larger batch."""
    shape: list[int | str] = []
    for one, two, more in zip(of_one, of_two, of_more, strict=True):
        named = BATCH if one != more else PAST if one != two else one
        shape.append(named)
    if grows and PAST not in shape:
        shape[-2] = PAST
    return tuple(shape)


def _are_empty(model: LanguageModel, states: list[State]) -> bool:
    """Whether the model computes with these states what it computes with an empty cache."""
    for time in (1, TIME):
        tokens_BT = _tokens(model, 2, time)
        cache = cache_of(model, {state: state.filled(2) for state in states}, _Begun(0))
        try:
            with torch.no_grad():
                logits_BTV = model(tokens_BT, cache)
                of_empty_BTV = model(tokens_BT, model.new_cache())
                most = ROUNDING * max(1.0, float(of_empty_BTV.abs().max()))
                same = torch.allclose(logits_BTV, of_empty_BTV, rtol=0, atol=most, equal_nan=True)
        except (RuntimeError, IndexError):  # a state without positions where some are needed
            return False
        if not same:
            return False
    return True
