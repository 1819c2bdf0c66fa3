"""What a placement is: where around a layer and its residual addition a norm is applied."""

from abc import ABC, abstractmethod

from torch import Tensor, nn


class Placement(nn.Module, ABC):
    """after_addition(x + after_layer(layer(before_layer(x)))), with a norm in one or more places.

    Final classes take `(options, width, normalisation)`, the last a choice that is built once for
    each norm. Each of the three methods maps every position on its own and keeps the shape; where
    there is no norm it returns its input. `after_addition` may be called with several streams of
    width D at once, of shape (..., D).
    """

    @abstractmethod
    def before_layer(self, x_BTD: Tensor) -> Tensor:
        """The layer's input, from what was read of the stream."""

    @abstractmethod
    def after_layer(self, y_BTD: Tensor) -> Tensor:
        """What is added to the stream, from the layer's output."""

    @abstractmethod
    def after_addition(self, x_BTD: Tensor) -> Tensor:
        """The new stream, from the sum."""
