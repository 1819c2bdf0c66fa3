"""What a position encoding is: the one place where a transformer learns the order of its tokens."""

from abc import ABC, abstractmethod

from torch import Tensor, nn


class Position(nn.Module, ABC):
    """Acts on the embeddings, on queries and keys, or on the attention scores.

    Final classes take `(options, width, context)`. A model has one, which all its blocks share.
    What every encoding must keep:

    - It acts through exactly one of the three methods (`no_position` through none); the other two
      return their very input, or None.
    - Positions are absolute: a sequence encoded in pieces, each with its own `start`, gives the
      same bits as encoded at once, whatever was asked before.
    - `rotate` and `bias` use no weights, and make scores depend on the distance between positions
      alone. A rotation keeps the norm.
    - `start` may lie beyond the context.
    """

    @abstractmethod
    def embed(self, x_BTD: Tensor, start: int) -> Tensor:
        """The embeddings at positions start, start + 1, ... with their positions added."""

    @abstractmethod
    def rotate(self, x_BHTK: Tensor, start: int) -> Tensor:
        """Queries or keys at positions start, start + 1, ..., rotated by an angle for each."""

    @abstractmethod
    def bias(self, heads: int, queries: int, keys: int) -> Tensor | None:
        """What to add to the attention scores, of shape (heads, queries, keys), or None.

        The queries stand at the last of the `keys` positions.
        """
