"""What a normalisation is: it brings each position's vector to a common scale."""

from abc import ABC, abstractmethod

from torch import Tensor, nn


class Normalisation(nn.Module, ABC):
    """Final classes take `(options, width)`.

    A position's output depends on that position alone, the shape is kept, and a vector of zeros
    gives finite numbers. The output does not change when x is multiplied by a positive constant,
    except in `identity` and `dynamic_tanh`.
    """

    @abstractmethod
    def forward(self, x_BTD: Tensor) -> Tensor:
        """y_BTD of the shape of x_BTD; also called with other leading dimensions than B and T."""
