"""A model as a function of tensors alone: what torch can trace into a graph."""

import copy
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from lmlab.export.onnx.states import State, cache_of
from lmlab.model.layers.attention import base as attention
from lmlab.model.layers.attention.base import Attention
from lmlab.model.layers.position.base import Position
from lmlab.model.layers.position.rotary import Rotary
from lmlab.model.models.base import LanguageModel


class Step(nn.Module):
    """tokens_BT and what the tokens before them left -> logits_BTV and what they leave together.

    What is left are the states, and before them, if anything `counts` positions, a scalar: how many
    were read. The model is copied; in the copy, position encodings take their start from there.
    """

    def __init__(self, model: LanguageModel, states: list[State]) -> None:
        super().__init__()
        self.model = copy.deepcopy(model).eval()
        self.states = states
        self.positions = [_Placed(position, model.width) for position in _positions(self.model)]
        self.counts = any(position.counts for position in self.positions)

    def forward(self, tokens_BT: Tensor, before: list[Tensor]) -> tuple[Tensor, list[Tensor]]:
        seen, tensors = (before[:1], before[1:]) if self.counts else ([], before)
        for position in self.positions:
            position.seen = seen
        states = dict(zip(self.states, tensors, strict=True))
        cache = cache_of(self.model, states, seen=1)  # positions go by the scalar instead
        logits_BTV = self.model(tokens_BT, cache)
        after = [cache[state.block].tensors[state.key] for state in self.states]
        return logits_BTV, [*(count + tokens_BT.shape[1] for count in seen), *after]


def _positions(model: LanguageModel) -> list[Position]:
    """The position encodings in a model; a hybrid has one of each transformer it is built of."""
    positions = {}
    for module in model.modules():
        if isinstance(module, Position):
            positions[id(module)] = module
        elif isinstance(module, Attention):
            positions[id(module.position)] = module.position
    return list(positions.values())


class _Placed:
    """A position encoding whose methods, replaced, begin at `seen` instead of where they are told.

    It needs to be told only if it `counts`: if it does anything by the number of a position.
    """

    seen: Sequence[Tensor]
    """How many positions were read; nothing if it does not count."""

    def __init__(self, position: Position, width: int) -> None:
        methods = {"embed": position.embed, "rotate": position.rotate}
        x_BTD, x_BHTK = torch.zeros(1, 1, width), torch.zeros(1, 1, 1, 2)
        self.counts = not (
            position.embed(x_BTD, 0) is x_BTD and position.rotate(x_BHTK, 0) is x_BHTK
        )
        if isinstance(position, Rotary):
            vars(position).update(rotate=partial(self._rotated, position.base))
        elif self.counts:
            placed = {name: partial(self._from_seen, method) for name, method in methods.items()}
            vars(position).update(placed)

    def _from_seen(self, method: Callable[[Tensor, int], Tensor], x: Tensor, _: int) -> Tensor:
        start: Any = self.seen[0].item()
        torch._check(start >= 0)  # type: ignore[no-untyped-call]
        return method(x, start)

    def _rotated(self, base: float, x_BHTK: Tensor, _: int) -> Tensor:
        """As by Rotary, which keeps its angles in a table: how far it goes has to be known."""
        time, pairs = x_BHTK.shape[-2], x_BHTK.shape[-1] // 2
        speeds = base ** (-torch.arange(pairs, dtype=torch.float64) / pairs)
        angles_TP = (self.seen[0] + torch.arange(time))[:, None].double() * speeds
        cosine_TP, sine_TP = angles_TP.cos().to(x_BHTK.dtype), angles_TP.sin().to(x_BHTK.dtype)
        first_BHTP, second_BHTP = x_BHTK.chunk(2, dim=-1)
        rotated_first = first_BHTP * cosine_TP - second_BHTP * sine_TP
        rotated_second = second_BHTP * cosine_TP + first_BHTP * sine_TP
        return torch.cat((rotated_first, rotated_second), dim=-1)


@contextmanager
def symbolic_max() -> Iterator[None]:
    """Inside, the KV cache is cut by a maximum that is traced, whichever the sizes at hand.

    Python's own would be decided by them once and for all.
    """
    names = vars(attention)
    names["max"] = torch.sym_max
    try:
        yield
    finally:
        del names["max"]
