"""Normalisation before and after each layer (Ding et al. 2021, "CogView").

No layer can write more to the stream than its second norm's gain allows.
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
        self.before = normalisation.build(width)
        self.behind = normalisation.build(width)

    def before_layer(self, x_BTD: Tensor) -> Tensor:
        return self.before(x_BTD)

    def after_layer(self, y_BTD: Tensor) -> Tensor:
        return self.behind(y_BTD)

    def after_addition(self, x_BTD: Tensor) -> Tensor:
        return x_BTD
