"""What an attention layer is."""

from abc import ABC, abstractmethod

from torch import Tensor, nn

from lmlab.layers.memory import Memory


class Attention(nn.Module, ABC):
    """Final classes take `(options, width, context, position)`. Its last linear map is `out`, as in a feed-forward layer.

    Position t of the output may depend on positions up to t only, bit for bit.
    """

    out: nn.Linear

    @abstractmethod
    def forward(self, x_BTD: Tensor, memory: Memory | None) -> Tensor:
        """Mix each position with those before it; with a memory, also with the tokens seen in earlier calls."""
