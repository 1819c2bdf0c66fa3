"""What a parametrisation is: what becomes of first weights and learning rates when the model's width changes."""

from abc import ABC, abstractmethod

from lmlab.models.base import LanguageModel


class Parametrisation(ABC):
    """Final classes take `(options)`. At the base width every one of them leaves everything as it is."""

    @abstractmethod
    def start(self, model: LanguageModel) -> None:
        """Scale the first weights the model has drawn, in place."""

    @abstractmethod
    def rate_factor(self, width: int, power: float) -> float:
        """What to multiply a parameter group's learning rate by in a model of this width.

        `power` is how the group's best rate goes with the width by the theory of its optimizer (`width_powers`).
        """
