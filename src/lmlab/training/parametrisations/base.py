"""What a parametrisation is: what becomes of initial weights and learning rates when the model's
width changes.
"""

from abc import ABC, abstractmethod

from lmlab.model.models.base import LanguageModel


class Parametrisation(ABC):
    """Final classes take `(options)`. At the base width every one of them leaves everything as it
    is, to the last bit.
    """

    @abstractmethod
    def check(self, model: LanguageModel) -> None:
        """Raise UserError where the model cannot be one of several that differ in width alone, as
        this one needs it.
        """

    @abstractmethod
    def start(self, model: LanguageModel) -> None:
        """Scale the initial weights the model has drawn, in place.

        To be called before the learning rule is built, whose own initial weights follow the model's
        (`width_ratio`).
        """

    @abstractmethod
    def rate_factor(self, width: int, power: float) -> float:
        """What to multiply a parameter group's learning rate by in a model of this width.

        `power` is how the group's best rate goes with the width by the theory of its optimizer
        (`width_powers`).
        """
