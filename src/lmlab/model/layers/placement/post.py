"""Normalisation after each addition (Vaswani et al. 2017), as in the first transformer.

Deep models then need a long learning-rate warm-up.
"""

from torch import Tensor

from lmlab.core.params import Params
from lmlab.core.registry import Choice
from lmlab.model.layers.placement.base import Placement


class Options(Params):
    """This placement has none."""


class Post(Placement):
    """norm(x + layer(x))."""

    def __init__(self, options: Options, width: int, normalisation: Choice) -> None:
        super().__init__()
        self.norm = normalisation.build(width)

    def before_layer(self, x_BTD: Tensor) -> Tensor:
        return x_BTD

    def after_layer(self, y_BTD: Tensor) -> Tensor:
        return y_BTD

    def after_addition(self, x_BTD: Tensor) -> Tensor:
        return self.norm(x_BTD)
