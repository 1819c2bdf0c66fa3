"""What a feed-forward layer is."""

from abc import ABC, abstractmethod

from torch import Tensor, nn


class FeedForward(nn.Module, ABC):
    """Final classes take `(options, width)`. Its last linear map is `out`, which models start at a
    smaller scale.

    `out` is None in a layer that is made of others which have one.
    """

    out: nn.Linear | None

    @abstractmethod
    def forward(self, x_BTD: Tensor) -> Tensor:
        """Each position's vector mapped alone; shape kept."""
