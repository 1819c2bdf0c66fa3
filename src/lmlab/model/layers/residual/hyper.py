"""Hyper-connections (Zhu et al. 2024): n parallel streams that every layer reads, mixes and writes.

A layer reads a weighted sum of the streams; the streams are mixed by an n x n matrix, and the
output is added to each with a weight. All weights are learned. With `dynamic` they also depend on
the token, through tanh(norm(stream) W) with W initialised to zero. Initially layer k reads stream
k mod n, no stream is mixed into another, and every stream is written to; n = 1 then is the plain
connection. After the last block the streams are summed.
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

    def __init__(self, options: Options, width: int, index: int, placement: Placement) -> None:
        super().__init__()
        self.placement, self.streams, self.width = placement, options.streams, width
        count = options.streams
        first_read = nn.functional.one_hot(torch.tensor(index % count), count).float()
        # vectors, because weight decay and optimizers for matrices should leave them alone
        self.read = nn.Parameter(first_read)
        self.mix = nn.Parameter(torch.eye(count).flatten())
        self.write = nn.Parameter(torch.ones(count))
        self.by_token = nn.Parameter(torch.zeros(count + 2, width)) if options.dynamic else None
        self.input_sections = {"by_token": (width,)}
        if options.dynamic:
            # the first scales reading and mixing, the second writing
            self.strength = nn.Parameter(torch.full((2,), 0.01))

    def expand(self, x_BTD: Tensor) -> Tensor:
        return x_BTD.repeat(1, 1, self.streams)

    def forward(self, s_BTS: Tensor, layer: Layer) -> Tensor:
        h_BTND = self._split(s_BTS)
        read_N, mix_NN, write_N = self._weights(h_BTND)
        x_BTD = (read_N[..., None] * h_BTND).sum(dim=-2)
        y_BTD = layer(self.placement.before_layer(x_BTD))
        y_BTD = self.placement.after_layer(y_BTD)
        h_BTND = mix_NN @ h_BTND + write_N[..., None] * y_BTD[..., None, :]
        return self.placement.after_addition(h_BTND).flatten(-2)

    def _weights(self, h_BTND: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """How much is read of each stream (N), mixed into each (N, N) and written to each (N).

        If dynamic, each has leading dimensions B and T.
        """
        mix_NN = self.mix.view(self.streams, self.streams)
        if self.by_token is None:
            return self.read, mix_NN, self.write
        normalised_BTND = nn.functional.layer_norm(h_BTND, (self.width,))
        by_token = torch.tanh(normalised_BTND @ self.by_token.T)
        read = self.read + self.strength[0] * by_token[..., 0]
        # transposed: what stream i computes goes into column i
        mix = mix_NN + self.strength[0] * by_token[..., 1:-1].mT
        write = self.write + self.strength[1] * by_token[..., -1]
        return read, mix, write

    def reduce(self, s_BTS: Tensor) -> Tensor:
        return self._split(s_BTS).sum(dim=-2)

    def _split(self, s_BTS: Tensor) -> Tensor:
        return s_BTS.reshape(*s_BTS.shape[:-1], self.streams, self.width)
