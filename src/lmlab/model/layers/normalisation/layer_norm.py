"""Layer normalisation (Ba et al. 2016).

Subtracts the mean and divides by the standard deviation, then applies a learned gain and bias.
"""

import torch
from pydantic import Field
from torch import Tensor, nn

from lmlab.core.params import Params
from lmlab.model.layers.normalisation.base import Normalisation


class Options(Params):
    """Options of the normalisation."""

    epsilon: float = Field(gt=0)


class LayerNorm(Normalisation):
    """(x - mean) / sqrt(variance + epsilon) * gain + bias."""

    def __init__(self, options: Options, width: int) -> None:
        super().__init__()
        self.epsilon = options.epsilon
        self.gain = nn.Parameter(torch.ones(width))
        self.bias = nn.Parameter(torch.zeros(width))

    def forward(self, x_BTD: Tensor) -> Tensor:
        return nn.functional.layer_norm(
            x_BTD, (x_BTD.shape[-1],), self.gain, self.bias, self.epsilon
        )
