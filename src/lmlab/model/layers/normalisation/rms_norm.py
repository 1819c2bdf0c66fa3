"""Root-mean-square normalisation (Zhang & Sennrich 2019).

Divides by the root of the mean square, then applies a learned gain.
"""

import torch
from pydantic import Field
from torch import Tensor, nn

from lmlab.core.params import Params
from lmlab.model.layers.normalisation.base import Normalisation
from lmlab.model.layers.root_mean_square import rms_norm


class Options(Params):
    """Options of the normalisation."""

    epsilon: float = Field(gt=0)


class RMSNorm(Normalisation):
    """x / sqrt(mean(x²) + epsilon) * gain."""

    def __init__(self, options: Options, width: int) -> None:
        super().__init__()
        self.epsilon = options.epsilon
        self.gain = nn.Parameter(torch.ones(width))

    def forward(self, x_BTD: Tensor) -> Tensor:
        return rms_norm(x_BTD, self.gain, self.epsilon)
