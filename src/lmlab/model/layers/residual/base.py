"""What a residual connection is: it takes a layer's input from the stream and puts the layer's
output back.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable

from torch import Tensor, nn

from lmlab.model.layers.attention.base import Values
from lmlab.model.layers.placement.base import Placement

Layer = Callable[[Tensor, Values | None], Tensor]
"""A layer as a residual connection sees it: x_BTD and what to do to the values (attention alone has
any) to y_BTD.
"""


class Residual(nn.Module, ABC):
    """Final classes take `(options, width, place, placement)`; place counts the connections of a
    model from 0.

    All that a block hands to the next is in the stream s_BTS, which may be wider than the model: S
    is D or more, D first.
    """

    placement: Placement
    widens: bool
    """Whether there is more in the stream than x_BTD."""

    @abstractmethod
    def open(self, x_BTD: Tensor) -> Tensor:
        """The stream as it begins; asked of a model's first connection."""

    @abstractmethod
    def forward(self, s_BTS: Tensor, layer: Layer) -> Tensor:
        """The stream after the layer."""

    @abstractmethod
    def close(self, s_BTS: Tensor) -> Tensor:
        """What is read out of the stream in the end, x_BTD; asked of a model's last connection."""
