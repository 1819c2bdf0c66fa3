"""Hyper-connections (Zhu et al. 2024): n streams side by side, which every layer reads from, mixes
and writes to by weights.

Each layer reads a weighted sum of the streams; the streams are mixed by an n x n matrix, and the
output is added to each by a weight. All weights are learned; with `dynamic` they also depend on the
token, through tanh(norm(stream) W) with W zero in the beginning. At first layer k reads stream k
mod n, no stream is mixed, and every one is written to: with n = 1 that is the plain connection. In
the end the streams are summed.
"""

import torch
from pydantic import Field
from torch import Tensor, nn

from lmlab.core.params import Params
from lmlab.model.layers.placement.base import Placement
from lmlab.model.layers.residual.base import Layer, Residual


class Options(Params):
    """Options of the connection."""

    streams: int = Field(ge=1)
    dynamic: bool


class Hyper(Residual):
    """For streams h_BTND: h <- mix h + write layer(read h)."""

    widens = True

    def __init__(self, options: Options, width: int, place: int, placement: Placement) -> None:
        super().__init__()
        self.placement, self.streams, self.width = placement, options.streams, width
        count = options.streams
        # vectors, since weight decay and optimizers for matrices have no business here
        self.read = nn.Parameter(nn.functional.one_hot(torch.tensor(place % count), count).float())
        self.mix = nn.Parameter(torch.eye(count).flatten())
        self.write = nn.Parameter(torch.ones(count))
        self.by_token = nn.Parameter(torch.zeros(count + 2, width)) if options.dynamic else None
        if options.dynamic:
            self.strength = nn.Parameter(
                torch.full((2,), 0.01)
            )  # of reading and mixing, and of writing

    def open(self, x_BTD: Tensor) -> Tensor:
        return x_BTD.repeat(1, 1, self.streams)

    def forward(self, s_BTS: Tensor, layer: Layer) -> Tensor:
        h_BTND = self._split(s_BTS)
        read_N, mix_NN, write_N = self._weights(h_BTND)
        placement = self.placement
        x_BTD = (read_N[..., None] * h_BTND).sum(dim=-2)
        y_BTD = placement.leave(layer(placement.enter(x_BTD), None))
        h_BTND = placement.settle(mix_NN @ h_BTND + write_N[..., None] * y_BTD[..., None, :])
        return h_BTND.flatten(-2)

    def _weights(self, h_BTND: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """How much is read of each stream (N), mixed into each (N, N), and written to each (N); by
        token if dynamic.
        """
        mix = self.mix.view(self.streams, self.streams)
        if self.by_token is None:
            return self.read, mix, self.write
        by_token = torch.tanh(nn.functional.layer_norm(h_BTND, (self.width,)) @ self.by_token.T)
        return (
            self.read + self.strength[0] * by_token[..., 0],
            mix
            + self.strength[0] * by_token[..., 1:-1].mT,  # what stream i says goes into column i
            self.write + self.strength[1] * by_token[..., -1],
        )

    def close(self, s_BTS: Tensor) -> Tensor:
        return self._split(s_BTS).sum(dim=-2)

    def _split(self, s_BTS: Tensor) -> Tensor:
        return s_BTS.reshape(*s_BTS.shape[:-1], self.streams, self.width)
