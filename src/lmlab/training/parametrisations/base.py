"""What a parametrisation is: how initialisation and learning rates follow the model's width."""

from abc import ABC, abstractmethod

from lmlab.model.models.base import LanguageModel


class Parametrisation(ABC):
    """Final classes take `(options)`, which have a `base_width`.

    At the base width every one of them leaves everything as it is, to the last bit: no initial
    weight changes, the model's `width_ratio` is 1, its parameters are in the usual groups, and
    every rate factor is exactly 1. They draw nothing at random, and work on a model without storage
    (on the device `meta`).
    """

    @abstractmethod
    def check(self, model: LanguageModel) -> None:
        """Raise UserError where the model is not one of a family that differ in width alone.

        The error names the param to change.
        """

    @abstractmethod
    def scale_initialisation(self, model: LanguageModel) -> None:
        """Scale the model's initial weights in place, and note its `width_ratio`.

        To be called before the learning rule is built, as its own initial weights follow the
        model's `width_ratio`. Raises UserError for a model that it cannot scale.
        """

    @abstractmethod
    def rate_factor(self, width: int, power: float) -> float:
        """What the learning rate of a parameter group is multiplied by in a model of this width.

        `power` is how the group's best learning rate goes with the width by the theory of its
        optimizer (`width_powers`).
        """
