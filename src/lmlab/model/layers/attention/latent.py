"""Multi-head latent attention (DeepSeek-AI 2024, "DeepSeek-V2").

All keys and values are computed from one small vector per token, the latent. The cache keeps that
vector and one more key, shared by all heads, that carries the position: a rotation could not be
moved past the map from latents to keys.
"""

import torch
from pydantic import Field
from torch import Tensor, nn

from lmlab.core.params import Params
from lmlab.model.layers.attention.base import (
    SoftmaxAttention,
    ValueMap,
    extend_cache,
    head_count,
)
from lmlab.model.layers.cache import Cache
from lmlab.model.layers.position.base import Position
from lmlab.model.layers.root_mean_square import rms_norm


class Options(Params):
    """Options of the attention."""

    heads: int = Field(ge=0)
    latent: int = Field(ge=1)
    position_width: int = Field(ge=2, multiple_of=2)
    epsilon: float = Field(gt=0)


class Latent(SoftmaxAttention):
    """H heads; a key is K numbers computed from the latent of width L, then R for the position."""

    def __init__(self, options: Options, width: int, context: int, position: Position) -> None:
        super().__init__(position)
        self.heads = head_count(options.heads, width, "layers.attention.latent.heads")
        self.receptive_field: int = context
        self.epsilon = options.epsilon
        self.head_width = width // self.heads
        self.latent = options.latent
        self.position_width = options.position_width
        query_width = self.head_width + self.position_width
        self.queries = nn.Linear(width, self.heads * query_width, bias=False)
        self.down = nn.Linear(width, self.latent + self.position_width, bias=False)
        self.keys_values = nn.Linear(self.latent, 2 * width, bias=False)
        self.sections = {"keys_values": (width, width)}
        self.out = nn.Linear(width, width, bias=False)

    def forward(
        self, x_BTD: Tensor, cache: Cache | None = None, map_values: ValueMap | None = None
    ) -> Tensor:
        time = x_BTD.shape[1]
        start = cache.seen if cache else 0
        q_BHTK = self._queries(x_BTD, start)
        latent_BTL, shared_key_BTR = self.down(x_BTD).split(
            (self.latent, self.position_width), dim=-1
        )
        latent_BTL = rms_norm(latent_BTL, epsilon=self.epsilon)
        shared_key_BTR = self.position.rotate(shared_key_BTR[:, None], start)[:, 0]
        new = {"latents": latent_BTL, "places": shared_key_BTR}
        if map_values is None:
            latent_BSL, shared_key_BSR = extend_cache(cache, self.receptive_field, **new)
            k_BHSK, v_BHSK = self._keys_and_values(latent_BSL)
        else:
            # mapped values cannot be recomputed from the latents, so they are cached as well
            _, v_BHTK = self._keys_and_values(latent_BTL)
            new["values"] = map_values(v_BHTK)
            latent_BSL, shared_key_BSR, v_BHSK = extend_cache(cache, self.receptive_field, **new)
            k_BHSK, _ = self._keys_and_values(latent_BSL)
        shared_key_BHSR = shared_key_BSR[:, None].expand(-1, self.heads, -1, -1)
        k_BHSK = torch.cat((k_BHSK, shared_key_BHSR), dim=-1)
        bias_HTS = self.position.bias(self.heads, time, k_BHSK.shape[-2])
        y_BHTK = self.attend(q_BHTK, k_BHSK, v_BHSK, bias_HTS)
        return self.join_heads(y_BHTK)

    def _queries(self, x_BTD: Tensor, start: int) -> Tensor:
        """Queries of width K + R, of which the last R numbers are rotated."""
        batch, time, _ = x_BTD.shape
        query_width = self.head_width + self.position_width
        q_BHTK = self.queries(x_BTD).view(batch, time, self.heads, query_width).transpose(1, 2)
        content, positional = q_BHTK[..., : self.head_width], q_BHTK[..., self.head_width :]
        return torch.cat((content, self.position.rotate(positional, start)), dim=-1)

    def _keys_and_values(self, latent_BSL: Tensor) -> tuple[Tensor, Tensor]:
        """The keys without their positional part and the values, each of shape (B, H, S, K)."""
        batch, keys, _ = latent_BSL.shape
        kv_BSD = self.keys_values(latent_BSL)
        kv_BSHK = kv_BSD.view(batch, keys, 2 * self.heads, self.head_width)
        k_BHSK, v_BHSK = kv_BSHK.transpose(1, 2).chunk(2, dim=1)
        return k_BHSK, v_BHSK
