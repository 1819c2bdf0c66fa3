"""The plain residual connection (He et al. 2016): the layer's output is added to its input."""

from torch import Tensor

from lmlab.core.params import Params
from lmlab.model.layers.placement.base import Placement
from lmlab.model.layers.residual.base import Layer, Residual


class Options(Params):
    """This connection has none."""


class Plain(Residual):
    """x + layer(x)."""

    widens = False

    def __init__(self, options: Options, width: int, place: int, placement: Placement) -> None:
        super().__init__()
        self.placement = placement

    def open(self, x_BTD: Tensor) -> Tensor:
        return x_BTD

    def forward(self, s_BTS: Tensor, layer: Layer) -> Tensor:
        placement = self.placement
        return placement.settle(s_BTS + placement.leave(layer(placement.enter(s_BTS), None)))

    def close(self, s_BTS: Tensor) -> Tensor:
        return s_BTS
