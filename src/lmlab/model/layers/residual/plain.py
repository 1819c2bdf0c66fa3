"""The plain residual connection (He et al. 2016): the layer's output is added to its input."""

from torch import Tensor

from lmlab.core.params import Params
from lmlab.model.layers.placement.base import Placement
from lmlab.model.layers.residual.base import Layer, Residual


class Options(Params):
    """This connection has none."""


class Plain(Residual):
    """x + layer(x), normalised where the placement says."""

    widens = False

    def __init__(self, options: Options, width: int, index: int, placement: Placement) -> None:
        super().__init__()
        self.placement = placement

    def expand(self, x_BTD: Tensor) -> Tensor:
        return x_BTD

    def forward(self, s_BTS: Tensor, layer: Layer) -> Tensor:
        y_BTD = layer(self.placement.before_layer(s_BTS))
        return self.placement.after_addition(s_BTS + self.placement.after_layer(y_BTD))

    def reduce(self, s_BTS: Tensor) -> Tensor:
        return s_BTS
