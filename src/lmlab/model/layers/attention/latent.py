"""Multi-head latent attention (DeepSeek-AI 2024, "DeepSeek-V2"): all keys and values are read from
one small vector a token.

Memory keeps that vector, and beside it one key shared by all heads that carries the position, since
a rotation could not pass through the map from the small vector to the keys.
"""

import torch
from pydantic import Field
from torch import Tensor, nn

from lmlab.core.params import Params
from lmlab.model.layers.attention.base import Attention, Values, attend, head_count, remember
from lmlab.model.layers.cache import Cache
from lmlab.model.layers.position.base import Position
from lmlab.model.layers.root_mean_square import rms_norm


class Options(Params):
    """Options of the attention."""

    heads: int = Field(ge=0)
    latent: int = Field(ge=1)
    position_width: int = Field(ge=2, multiple_of=2)
    epsilon: float = Field(gt=0)


class Latent(Attention):
    """H heads; a key is K numbers read from the latent of width L, then R that carry the
    position.
    """

    def __init__(self, options: Options, width: int, context: int, position: Position) -> None:
        super().__init__()
        self.heads = head_count(options.heads, width, "layers.attention.latent.heads")
        self.receptive_field: int = context
        self.epsilon = options.epsilon
        self.head_width, self.latent, self.position_width = (
            width // self.heads,
            options.latent,
            options.position_width,
        )
        self.queries = nn.Linear(
            width, self.heads * (self.head_width + self.position_width), bias=False
        )
        self.down = nn.Linear(width, self.latent + self.position_width, bias=False)
        self.keys_values = nn.Linear(self.latent, 2 * width, bias=False)
        self.out = nn.Linear(width, width, bias=False)
        self.rotate, self.bias = position.rotate, position.bias

    def forward(
        self, x_BTD: Tensor, cache: Cache | None = None, values: Values | None = None
    ) -> Tensor:
        batch, time, width = x_BTD.shape
        start = cache.seen if cache else 0
        content, place = self.head_width, self.position_width
        q_BHTK = self.queries(x_BTD).view(batch, time, self.heads, content + place).transpose(1, 2)
        q_BHTK = torch.cat(
            (q_BHTK[..., :content], self.rotate(q_BHTK[..., content:], start)), dim=-1
        )

        latent_BTL, place_BTR = self.down(x_BTD).split((self.latent, place), dim=-1)
        latent_BTL = rms_norm(latent_BTL, epsilon=self.epsilon)
        place_BTR = self.rotate(place_BTR[:, None], start)[:, 0]
        if values is None:
            latent_BSL, place_BSR = remember(
                cache, self.receptive_field, latents=latent_BTL, places=place_BTR
            )
            k_BHSK, v_BHSK = self._read(latent_BSL)
        else:
            # changed values are no longer what the latents give: they have to be remembered
            # themselves
            _, v_BHTK = self._read(latent_BTL)
            latent_BSL, place_BSR, v_BHSK = remember(
                cache,
                self.receptive_field,
                latents=latent_BTL,
                places=place_BTR,
                values=values(v_BHTK),
            )
            k_BHSK, _ = self._read(latent_BSL)
        k_BHSK = torch.cat((k_BHSK, place_BSR[:, None].expand(-1, self.heads, -1, -1)), dim=-1)
        y_BHTK = attend(q_BHTK, k_BHSK, v_BHSK, self.bias(self.heads, time, k_BHSK.shape[-2]))
        return self.out(y_BHTK.transpose(1, 2).reshape(batch, time, width))

    def _read(self, latent_BSL: Tensor) -> tuple[Tensor, Tensor]:
        """The keys' contents and the values, each of shape (B, H, S, K)."""
        batch, keys, _ = latent_BSL.shape
        both = (
            self.keys_values(latent_BSL)
            .view(batch, keys, 2 * self.heads, self.head_width)
            .transpose(1, 2)
        )
        k_BHSK, v_BHSK = both.chunk(2, dim=1)
        return k_BHSK, v_BHSK
