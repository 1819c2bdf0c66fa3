"""Dynamic tanh (Zhu et al. 2025, "Transformers without Normalization").

Squashes each number on its own, with a learned slope.
"""

import torch
from pydantic import Field
from torch import Tensor, nn

from lmlab.core.params import Params
from lmlab.model.layers.normalisation.base import Normalisation


class Options(Params):
    """Options of the normalisation."""

    slope: float = Field(gt=0)


class DynamicTanh(Normalisation):
    """tanh(slope * x) * gain + bias. No mean or variance is taken."""

    def __init__(self, options: Options, width: int) -> None:
        super().__init__()
        self.slope = nn.Parameter(torch.full((1,), options.slope))
        self.gain = nn.Parameter(torch.ones(width))
        self.bias = nn.Parameter(torch.zeros(width))

    def forward(self, x_BTD: Tensor) -> Tensor:
        return torch.tanh(self.slope * x_BTD) * self.gain + self.bias
