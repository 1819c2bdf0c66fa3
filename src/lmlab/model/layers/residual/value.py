"""Value residual (Zhou et al. 2024, "Value Residual Learning"): v <- own v + first v_1.

Every attention mixes the first block's values v_1 into its own. So a token's identity stays
readable in deep blocks, however much the stream has changed. v_1 travels in the stream behind its D
numbers, which keeps each block a function of the stream alone.
"""

import torch
from torch import Tensor, nn

from lmlab.core.params import Params
from lmlab.model.layers.placement.base import Placement
from lmlab.model.layers.residual.base import Layer, Residual


class Options(Params):
    """This connection has none."""


class Value(Residual):
    """x + layer(x); an attention's values become own * v + first * v_1.

    Both factors are learned and start at one half.
    """

    widens = True

    def __init__(self, options: Options, width: int, index: int, placement: Placement) -> None:
        super().__init__()
        self.placement, self.width = placement, width
        self.is_first = index == 0
        self.is_attention = index % 2 == 0
        if self.is_attention and not self.is_first:
            self.own = nn.Parameter(torch.full((1,), 0.5))
            self.first = nn.Parameter(torch.full((1,), 0.5))

    def expand(self, x_BTD: Tensor) -> Tensor:
        return x_BTD

    def forward(self, s_BTS: Tensor, layer: Layer) -> Tensor:
        x_BTD, first_BTV = s_BTS[..., : self.width], s_BTS[..., self.width :]

        def record(v_BHTK: Tensor) -> Tensor:
            nonlocal first_BTV
            first_BTV = v_BHTK.transpose(1, 2).flatten(2)
            return v_BHTK

        def mix(v_BHTK: Tensor) -> Tensor:
            batch, heads, time, width = v_BHTK.shape
            first_BHTK = first_BTV.reshape(batch, time, heads, width).transpose(1, 2)
            return self.own * v_BHTK + self.first * first_BHTK

        layer_input_BTD = self.placement.before_layer(x_BTD)
        if self.is_attention:
            y_BTD = layer(layer_input_BTD, record if self.is_first else mix)
        else:
            y_BTD = layer(layer_input_BTD)
        x_BTD = self.placement.after_addition(x_BTD + self.placement.after_layer(y_BTD))
        return torch.cat((x_BTD, first_BTV), dim=-1)

    def reduce(self, s_BTS: Tensor) -> Tensor:
        return s_BTS[..., : self.width]
