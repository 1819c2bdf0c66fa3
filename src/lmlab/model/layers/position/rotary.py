"""Rotary position embedding, RoPE (Su et al. 2021, "RoFormer").

Pairs of dimensions are rotated by an angle proportional to the position, each pair at its own
speed. The score of a query at i and a key at j then depends on i - j alone.
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
    """Rotates (x_k, x_{k + K/2}) at position t by the angle t base^(-2 k / K), for k < K / 2."""

    def __init__(self, options: Options, width: int, context: int) -> None:
        super().__init__()
        self.base = options.base
        self._cosines_sines: tuple[Tensor, Tensor] | None = None
        """Of all positions so far, each of shape (positions, K / 2)."""

    def embed(self, x_BTD: Tensor, start: int) -> Tensor:
        return x_BTD

    def rotate(self, x_BHTK: Tensor, start: int) -> Tensor:
        cosine_TP, sine_TP = self._angles(start, x_BHTK)
        first_BHTP, second_BHTP = x_BHTK.chunk(2, dim=-1)
        rotated_first = first_BHTP * cosine_TP - second_BHTP * sine_TP
        rotated_second = second_BHTP * cosine_TP + first_BHTP * sine_TP
        return torch.cat((rotated_first, rotated_second), dim=-1)

    def bias(self, heads: int, queries: int, keys: int) -> Tensor | None:
        return None

    def _angles(self, start: int, x_BHTK: Tensor) -> tuple[Tensor, Tensor]:
        """Cosines and sines of the angles at each position, each of shape (T, K / 2).

        They are kept, because every layer asks for them in every step.
        """
        end, pairs = start + x_BHTK.shape[-2], x_BHTK.shape[-1] // 2
        device = x_BHTK.device
        if self._cosines_sines is None or not _covers(self._cosines_sines[0], end, pairs, device):
            exponents = -torch.arange(pairs, device=device, dtype=torch.float64) / pairs
            speeds = self.base**exponents
            # twice as far as asked for, so that generation token by token seldom recomputes them
            positions = torch.arange(2 * end, device=device, dtype=torch.float64)
            angles = positions[:, None] * speeds
            self._cosines_sines = angles.cos(), angles.sin()
        cosines, sines = self._cosines_sines
        return cosines[start:end].to(x_BHTK.dtype), sines[start:end].to(x_BHTK.dtype)


def _covers(cosines: Tensor, end: int, pairs: int, device: torch.device) -> bool:
    """Whether the kept cosines serve `end` positions of heads with so many pairs on the device."""
    return cosines.shape[0] >= end and cosines.shape[1] == pairs and cosines.device == device
