"""What a parametrisation is: what becomes of first weights and learning rates when the model's width changes."""

from abc import ABC, abstractmethod
from typing import Any

import torch

from lmlab.models.base import LanguageModel


class Parametrisation(ABC):
    """Final classes take `(options)`. At the base width every one of them leaves everything as it is, to the last bit."""

    decay_follows_rate: bool
    """Whether decoupled weight decay, lr * decay, goes with the width as the learning rate does."""

    @abstractmethod
    def start(self, model: LanguageModel) -> None:
        """Scale the first weights the model has drawn, in place.

        To be called before a learning rule is built, which scales its own by what this leaves in `model.width_ratio`.
        """

    @abstractmethod
    def rate_factor(self, width: int, power: float) -> float:
        """What to multiply a parameter group's learning rate by in a model of this width.

        `power` is how the group's best rate goes with the width by the theory of its optimizer (`width_powers`).
        """

    def scale_rates(self, optimizer: torch.optim.Optimizer, width: int) -> None:
        """Multiply the learning rate of every group by its factor; from there the schedule moves it (`initial_lr`)."""
        powers: dict[str, float] = optimizer.width_powers  # type: ignore[attr-defined]
        group: dict[str, Any]
        for group in optimizer.param_groups:
            factor = self.rate_factor(width, powers.get(group["name"], 0.0))
            group["initial_lr"] = group["lr"] = group["lr"] * factor
            if not self.decay_follows_rate:
                group["width_factor"] = factor
