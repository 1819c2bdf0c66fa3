"""No normalisation: numbers keep whatever scale they have. Deep models then need small initial
weights or low rates.
"""

from torch import Tensor

from lmlab.core.params import Params
from lmlab.model.layers.normalisation.base import Normalisation


class Options(Params):
    """This normalisation has none."""


class Identity(Normalisation):
    """Leaves everything as it is."""

    def __init__(self, options: Options, width: int) -> None:
        super().__init__()

    def forward(self, x_BTD: Tensor) -> Tensor:
        return x_BTD
