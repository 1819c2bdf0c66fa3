"""What a kind of position may do: change the embeddings, rotate queries and keys, or add to the
attention scores.
"""

from abc import ABC, abstractmethod

from torch import Tensor, nn


class Position(nn.Module, ABC):
    """Final classes take `(options, width, context)`. One is shared by all blocks of a model."""

    @abstractmethod
    def embed(self, x_BTD: Tensor, start: int) -> Tensor:
        """The embeddings with positions start, start + 1, ... put in; the same tensor where that is
        not its way.
        """

    @abstractmethod
    def rotate(self, x_BHTK: Tensor, start: int) -> Tensor:
        """Queries or keys at positions start, start + 1, ... turned so that their products depend
        on distance.
        """

    @abstractmethod
    def bias(self, heads: int, queries: int, keys: int) -> Tensor | None:
        """What each head adds to the scores of the last `queries` of `keys` positions, shape
        (heads, queries, keys).
        """
