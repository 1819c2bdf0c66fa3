"""ALiBi, attention with linear biases (Press et al. 2022).

Attention scores decrease linearly with distance, with a different slope in each head.
"""

import torch
from torch import Tensor

from lmlab.core.params import Params
from lmlab.model.layers.position.base import Position


class Options(Params):
    """This position has none."""


class ALiBi(Position):
    """Head h of H, counted from 1, subtracts distance / 2^(8 h / H) from each score.

    Nothing is learned.
    """

    def __init__(self, options: Options, width: int, context: int) -> None:
        super().__init__()

    def embed(self, x_BTD: Tensor, start: int) -> Tensor:
        return x_BTD

    def rotate(self, x_BHTK: Tensor, start: int) -> Tensor:
        return x_BHTK

    def bias(self, heads: int, queries: int, keys: int) -> Tensor | None:
        slopes = 2.0 ** (-8.0 / heads * torch.arange(1, heads + 1))
        positions = torch.arange(keys)
        distances = positions[keys - queries :, None] - positions
        return -slopes[:, None, None] * distances
