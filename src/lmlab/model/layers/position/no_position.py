"""No position: only causality tells the order (Haviv et al. 2022, "... without Positional Encodings
Still Learn ...").
"""

from torch import Tensor

from lmlab.core.params import Params
from lmlab.model.layers.position.base import Position


class Options(Params):
    """This position has none."""


class NoPosition(Position):
    """Leaves everything as it is."""

    def __init__(self, options: Options, width: int, context: int) -> None:
        super().__init__()

    def embed(self, x_BTD: Tensor, start: int) -> Tensor:
        return x_BTD

    def rotate(self, x_BHTK: Tensor, start: int) -> Tensor:
        return x_BHTK

    def bias(self, heads: int, queries: int, keys: int) -> Tensor | None:
        return None
