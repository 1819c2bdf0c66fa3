"""No normalisation: activations keep their scale.

Deep models then need a small initialisation or a low learning rate.
"""

from torch import Tensor

from lmlab.core.params import Params
from lmlab.model.layers.normalisation.base import Normalisation


class Options(Params):
    """This normalisation has none."""


class Identity(Normalisation):
    """Returns its input."""

    def __init__(self, options: Options, width: int) -> None:
        super().__init__()

    def forward(self, x_BTD: Tensor) -> Tensor:
        return x_BTD
