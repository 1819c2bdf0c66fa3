"""Normalisation before and behind each layer (Ding et al. 2021, "CogView"): no layer can write more
than its norm's gain.
"""

from torch import Tensor

from lmlab.core.params import Params
from lmlab.core.registry import Choice
from lmlab.model.layers.placement.base import Placement


class Options(Params):
    """This placement has none."""


class Sandwich(Placement):
    """x + norm(layer(norm(x)))."""

    def __init__(self, options: Options, width: int, normalisation: Choice) -> None:
        super().__init__()
        self.before, self.behind = normalisation.build(width), normalisation.build(width)

    def enter(self, x_BTD: Tensor) -> Tensor:
        return self.before(x_BTD)

    def leave(self, y_BTD: Tensor) -> Tensor:
        return self.behind(y_BTD)

    def settle(self, x_BTD: Tensor) -> Tensor:
        return x_BTD
