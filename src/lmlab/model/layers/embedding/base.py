"""What an embedding is: it maps token ids to the vectors that enter the first block."""

from abc import ABC, abstractmethod

from torch import Tensor, nn

from lmlab.model.layers.cache import Cache


class Embedding(nn.Module, ABC):
    """Final classes take `(options, vocabulary_size, width)`. What every embedding must keep:

    - A position's vector depends on tokens up to that position only.
    - With a cache, a text read in pieces of any length gives the vectors of the text read at once
      (the same bits, unless a matrix product combines rows), and what it keeps does not grow with
      the text.
    """

    tokens: nn.Embedding
    """One row for each token; with `tied`, the output head has the same weights."""
    lookback: int = 0
    """How many tokens before its own a position's vector depends on."""

    @abstractmethod
    def forward(self, tokens_BT: Tensor, cache: Cache | None = None) -> Tensor:
        """x_BTD of tokens_BT, which with a cache continue the tokens of earlier calls."""
