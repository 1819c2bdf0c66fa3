"""What a placement is: what happens to a layer's input, to its output, and to the stream the output
was added to.
"""

from abc import ABC, abstractmethod

from torch import Tensor, nn


class Placement(nn.Module, ABC):
    """Final classes take `(options, width, normalisation)`, the last a choice to be built once for
    each norm.
    """

    @abstractmethod
    def enter(self, x_BTD: Tensor) -> Tensor:
        """What the layer is given of the stream."""

    @abstractmethod
    def leave(self, y_BTD: Tensor) -> Tensor:
        """What is added to the stream of the layer's output."""

    @abstractmethod
    def settle(self, x_BTD: Tensor) -> Tensor:
        """The stream after the addition."""
