"""Learned positions (Gehring et al. 2017; Radford et al. 2018): a vector for each place in the
window, added to the token's.

Beyond the context, where nothing was learned, every token stands at the last place.
"""

import torch
from torch import Tensor, nn

from lmlab.core.params import Params
from lmlab.model.layers.position.base import Position


class Options(Params):
    """This position has none."""


class Learned(Position):
    """A table of `context` vectors."""

    def __init__(self, options: Options, width: int, context: int) -> None:
        super().__init__()
        self.table = nn.Embedding(context, width)

    def embed(self, x_BTD: Tensor, start: int) -> Tensor:
        places = torch.arange(start, start + x_BTD.shape[1], device=x_BTD.device)
        return x_BTD + self.table(places.clamp(max=self.table.num_embeddings - 1))

    def rotate(self, x_BHTK: Tensor, start: int) -> Tensor:
        return x_BHTK

    def bias(self, heads: int, queries: int, keys: int) -> Tensor | None:
        return None
