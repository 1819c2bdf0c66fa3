"""Value residual (Zhou et al. 2024, "Value Residual Learning"): every attention mixes the first
block's values into its own.

So what a token is stays readable in deep blocks, whatever the stream has become. The first values
run along in the stream, behind its D numbers, which keeps each block a function of the stream
alone.
"""

import torch
from torch import Tensor, nn

from lmlab.core.params import Params
from lmlab.model.layers.placement.base import Placement
from lmlab.model.layers.residual.base import Layer, Residual


class Options(Params):
    """This connection has none."""


class Value(Residual):
    """x + layer(x); an attention's values become own * v + first * v_1, both factors learned, one
    half to begin with.
    """

    widens = True

    def __init__(self, options: Options, width: int, place: int, placement: Placement) -> None:
        super().__init__()
        self.placement, self.width = placement, width
        self.is_first, self.is_attention = place == 0, place % 2 == 0
        if self.is_attention and not self.is_first:
            self.own, self.first = (
                nn.Parameter(torch.full((1,), 0.5)),
                nn.Parameter(torch.full((1,), 0.5)),
            )

    def open(self, x_BTD: Tensor) -> Tensor:
        return x_BTD

    def forward(self, s_BTS: Tensor, layer: Layer) -> Tensor:
        x_BTD, first_BTV = s_BTS[..., : self.width], s_BTS[..., self.width :]

        def keep(v_BHTK: Tensor) -> Tensor:
            nonlocal first_BTV
            first_BTV = v_BHTK.transpose(1, 2).flatten(2)
            return v_BHTK

        def mix(v_BHTK: Tensor) -> Tensor:
            batch, heads, time, width = v_BHTK.shape
            return self.own * v_BHTK + self.first * first_BTV.reshape(
                batch, time, heads, width
            ).transpose(1, 2)

        values = (keep if self.is_first else mix) if self.is_attention else None
        placement = self.placement
        x_BTD = placement.settle(x_BTD + placement.leave(layer(placement.enter(x_BTD), values)))
        return torch.cat((x_BTD, first_BTV), dim=-1)

    def close(self, s_BTS: Tensor) -> Tensor:
        return s_BTS[..., : self.width]
