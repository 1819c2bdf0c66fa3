"""What a normalisation is."""

from abc import ABC, abstractmethod

from torch import Tensor, nn


class Normalisation(nn.Module, ABC):
    """Final classes take `(options, width)`."""

    @abstractmethod
    def forward(self, x_BTD: Tensor) -> Tensor:
        """Each position's vector brought to a common scale; shape kept."""
