"""What a growth is: it says of each tensor of a larger model which old numbers it is made of.

A growth makes a step from one model to another of the same parts, by options of which it is in
charge; several in turn reach any shape between them. Applied, checked and chained by
`lmlab.training.growing`. Written down as `Grown`, it carries weights and the optimizer's state:
where a unit is copied, the loss's gradient for it is divided among the copies.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import ClassVar, Literal

import torch
from torch import Tensor

from lmlab.model.models.base import LanguageModel

NEW = -1
"""In a list of sources: a place that no old number goes to."""
Fill = Literal["drawn", "zero"]


@dataclass(frozen=True)
class Axis:
    """What the places along one axis of a tensor are made of."""

    sources: Tensor
    """The old place of each new one, or NEW, shape (new size,)."""
    fill: Fill = "drawn"
    """What is in new places: what a model from scratch has there, or zeros, which win."""
    share: Tensor | None = None
    """What each place's copied number is multiplied by: 1 / copies where copies are added up. None:
    1.
    """
    gradient: Tensor | None = None
    """What each place's copied gradient is multiplied by: 1 / copies where these are of one unit.
    None: 1.
    """


@dataclass(frozen=True)
class Grown:
    """A tensor of the larger model."""

    source: str
    """The name of the old tensor that it is made of."""
    axes: Mapping[int, Axis] = field(default_factory=dict)
    """Those that change."""
    is_zero: bool = False
    """Whether it is zero altogether, as what a new block adds to the stream is."""
    is_new: bool = False
    """Whether it begins with a copy of the old tensor, and without an optimizer's state."""
    gradient_share: float = 1.0
    """What its gradient is of the old one's, where it is one of several copies."""

    def weights(self, old: Tensor, drawn: Tensor) -> Tensor:
        """Its weights, where `drawn` are those of a model from scratch."""
        if self.is_zero:
            return torch.zeros_like(drawn)
        return self._made(old, drawn, [axis.share for axis in self.axes.values()])

    def gradient(self, old: Tensor, power: int = 1) -> Tensor:
        """The optimizer's mean of gradients, or of their squares (`power` 2)."""
        shape = list(old.shape)
        for number, axis in self.axes.items():
            shape[number] = len(axis.sources)
        factors = [
            None if axis.gradient is None else axis.gradient**power for axis in self.axes.values()
        ]
        return self._made(old, old.new_zeros(shape), factors) * self.gradient_share**power

    def _made(self, old: Tensor, drawn: Tensor, factors: list[Tensor | None]) -> Tensor:
        made = old
        keeps_drawn = torch.zeros_like(drawn, dtype=torch.bool)
        is_zero = torch.zeros_like(drawn, dtype=torch.bool)
        for (number, axis), factor in zip(self.axes.items(), factors, strict=True):
            made = made.index_select(number, axis.sources.clamp(min=0))
            shape = [1] * drawn.ndim
            shape[number] = -1
            if factor is not None:
                made = made * factor.to(made.dtype).reshape(shape)
            is_new = (axis.sources == NEW).reshape(shape).expand_as(drawn)
            target = is_zero if axis.fill == "zero" else keeps_drawn
            target |= is_new
        made = torch.where(keeps_drawn, drawn.to(made), made)
        return made.masked_fill(is_zero, 0)


class Growth(ABC):
    """Final classes take `(options)`."""

    preserves: ClassVar[bool] = True
    """Whether the larger model computes what the smaller one does."""
    shrinks: ClassVar[bool] = False
    """Whether it makes models smaller, by what it sees in `look`."""
    keys: ClassVar[tuple[str, ...]]
    """The options, of any part of the model, that it sets to their new values."""

    def look(self, old: LanguageModel, tokens_BS: Tensor) -> None:  # noqa: B027 (most need not)
        """Look at the old model at work on windows of training text, before `tensors`."""

    @abstractmethod
    def tensors(self, old: LanguageModel, new: LanguageModel) -> dict[str, Grown]:
        """What each tensor of the new model's state is made of. Neither model has storage.

        Raises UserError, naming the option, where it has no way to reach it.
        """

    def finish(  # noqa: B027 (most growths do nothing more)
        self,
        tensors: Mapping[str, Grown],
        weights: dict[str, Tensor],
        drawn: Mapping[str, Tensor],
    ) -> None:
        """Do what is done beside copying, such as breaking ties, to the larger model's weights."""


def copies(sources: Tensor) -> Tensor:
    """How often each place's source occurs among all sources."""
    return sources.bincount()[sources].double()
