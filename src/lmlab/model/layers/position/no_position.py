"""No position encoding: only the causal mask reveals the order of tokens.

(Haviv et al. 2022, "Transformer Language Models without Positional Encodings Still Learn Positional
Information".)
"""

from torch import Tensor

from lmlab.core.params import Params
from lmlab.model.layers.position.base import Position


class Options(Params):
    """This position has none."""


class NoPosition(Position):
    """Returns its input and adds nothing to the scores."""

    def __init__(self, options: Options, width: int, context: int) -> None:
        super().__init__()

    def embed(self, x_BTD: Tensor, start: int) -> Tensor:
        return x_BTD

    def rotate(self, x_BHTK: Tensor, start: int) -> Tensor:
        return x_BHTK

    def bias(self, heads: int, queries: int, keys: int) -> Tensor | None:
        return None
