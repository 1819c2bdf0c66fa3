"""Normalisation before each layer (Xiong et al. 2020).

The stream itself is never rescaled, so deep models train well from the start.
"""

from torch import Tensor

from lmlab.core.params import Params
from lmlab.core.registry import Choice
from lmlab.model.layers.placement.base import Placement


class Options(Params):
    """This placement has none."""


class Pre(Placement):
    """x + layer(norm(x))."""

    def __init__(self, options: Options, width: int, normalisation: Choice) -> None:
        super().__init__()
        self.norm = normalisation.build(width)

    def before_layer(self, x_BTD: Tensor) -> Tensor:
        return self.norm(x_BTD)

    def after_layer(self, y_BTD: Tensor) -> Tensor:
        return y_BTD

    def after_addition(self, x_BTD: Tensor) -> Tensor:
        return x_BTD
