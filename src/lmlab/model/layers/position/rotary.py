"""Rotary position (Su et al. 2021, "RoFormer"): pairs of dimensions turn with the position, each at
its own speed.

The score of a query at i and a key at j then depends on i - j alone.
"""

import torch
from pydantic import Field
from torch import Tensor

from lmlab.core.params import Params
from lmlab.model.layers.position.base import Position


class Options(Params):
    """Options of the rotation."""

    base: float = Field(gt=1)


class Rotary(Position):
    """Dimension k of the first half of a head turns together with dimension k of the second
    half.
    """

    def __init__(self, options: Options, width: int, context: int) -> None:
        super().__init__()
        self.base = options.base
        self._turns: tuple[Tensor, Tensor] | None = None

    def embed(self, x_BTD: Tensor, start: int) -> Tensor:
        return x_BTD

    def rotate(self, x_BHTK: Tensor, start: int) -> Tensor:
        cosine, sine = self._angles(start, x_BHTK)
        first, second = x_BHTK.chunk(2, dim=-1)
        return torch.cat((first * cosine - second * sine, second * cosine + first * sine), dim=-1)

    def bias(self, heads: int, queries: int, keys: int) -> Tensor | None:
        return None

    def _angles(self, start: int, x_BHTK: Tensor) -> tuple[Tensor, Tensor]:
        """Cosine and sine of each position's angles, shape (T, K / 2); kept, since every layer and
        step asks again.
        """
        end, half = start + x_BHTK.shape[-2], x_BHTK.shape[-1] // 2
        kept = self._turns
        if (
            kept is None
            or kept[0].shape[0] < end
            or kept[0].shape[1] != half
            or kept[0].device != x_BHTK.device
        ):
            speeds = self.base ** (
                -torch.arange(half, device=x_BHTK.device, dtype=torch.float64) / half
            )
            # twice as far as asked for, so that generating token by token seldom comes back here
            angles = (
                torch.arange(2 * end, device=x_BHTK.device, dtype=torch.float64)[:, None] * speeds
            )
            kept = self._turns = angles.cos(), angles.sin()
        return kept[0][start:end].to(x_BHTK.dtype), kept[1][start:end].to(x_BHTK.dtype)
