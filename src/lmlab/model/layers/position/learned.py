"""Learned positions (Gehring et al. 2017; Radford et al. 2018), added to the token embeddings.

Beyond the context, where nothing was learned, every token gets the last position's vector.
"""

import torch
from torch import Tensor, nn

from lmlab.core.params import Params
from lmlab.model.layers.position.base import Position


class Options(Params):
    """This position has none."""


class Learned(Position):
    """x + table[position], with a table of `context` vectors."""

    def __init__(self, options: Options, width: int, context: int) -> None:
        super().__init__()
        self.table = nn.Embedding(context, width)

    def embed(self, x_BTD: Tensor, start: int) -> Tensor:
        positions = torch.arange(start, start + x_BTD.shape[1], device=x_BTD.device)
        return x_BTD + self.table(positions.clamp(max=self.table.num_embeddings - 1))

    def rotate(self, x_BHTK: Tensor, start: int) -> Tensor:
        return x_BHTK

    def bias(self, heads: int, queries: int, keys: int) -> Tensor | None:
        return None
