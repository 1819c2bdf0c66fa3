"""What a feed-forward layer is: a map applied to each position on its own."""

from abc import ABC, abstractmethod

from torch import Tensor, nn

from lmlab.model.places import Place


class FeedForward(nn.Module, ABC):
    """y = out(units), units = f(x), at each position.

    Final classes take `(options, width)`. What every layer must keep:

    - A position's output depends on that position alone, and the shape is kept.
    - Its last linear map is the attribute `out`, whose weights models initialise at a smaller
      scale: where those are zero, so is the layer's output.
    - What `out` reads has passed the place `units`: as many numbers as the layer has hidden units.
    """

    out: nn.Linear | None
    """None in a layer made of other feed-forward layers; those have one each."""
    units: Place
    """What `out` reads, h_BTF; absent where there is no `out`."""

    @abstractmethod
    def forward(self, x_BTD: Tensor) -> Tensor:
        """y_BTD of the shape of x_BTD."""
