"""RWKV in the form of Eagle (Peng et al. 2023, 2024): linear attention with a decay per channel.

Both layers of a block read one token back (token shift). The first reads further through a matrix
for each head, to which every token adds its key times its value. The cache is those matrices and
the last input of both layers: of fixed size, with no limit to the receptive field but what the
decays forget.
"""

from math import exp

import torch
from pydantic import Field
from torch import Tensor, nn

from lmlab.core.errors import UserError
from lmlab.core.params import Params
from lmlab.model.layers.cache import Cache
from lmlab.model.layers.root_mean_square import rms_norm
from lmlab.model.models.base import LanguageModel, Norm, init_weights, with_past
from lmlab.model.places import Place

MAX_LOG_DECAY = exp(-0.5)
"""Most that the logarithm of a channel can fall by in a token (as in RWKV-7).

Over a chunk of 64 tokens that is a factor of 1e17.
"""


class Options(Params):
    """Options of the model."""

    layers: int = Field(ge=1)
    width: int = Field(ge=1)
    heads: int = Field(ge=1)
    expansion: float = Field(gt=0, le=1e6)
    chunk: int = Field(ge=1, le=64)


def one_chunk(
    log_keep_HK: Tensor,
    bonus_HK: Tensor,
    r_BHTK: Tensor,
    k_BHTK: Tensor,
    v_BHTV: Tensor,
    state_BHKV: Tensor,
) -> tuple[Tensor, Tensor]:
    """y_BHTV and the last state of y = r (state + bonus k vᵀ), state <- keep state + k vᵀ.

    What s wrote reaches t multiplied by keep^(t - 1 - s). That is split into keep^t at the
    receptance r and keep^-(s + 1) at the key; the second grows, but no further than MAX_LOG_DECAY
    and the size of a chunk allow.
    """
    time = r_BHTK.shape[2]
    index_T1 = torch.arange(time, device=r_BHTK.device, dtype=r_BHTK.dtype)[:, None]
    log_keep_H1K = log_keep_HK[:, None]
    decayed_r_BHTK = r_BHTK * (index_T1 * log_keep_H1K).exp()
    grown_k_BHTK = k_BHTK * (-(index_T1 + 1) * log_keep_H1K).exp()
    scores_BHTS = (decayed_r_BHTK @ grown_k_BHTK.transpose(2, 3)).tril(-1)
    present_BHT1 = (r_BHTK * bonus_HK[:, None] * k_BHTK).sum(dim=-1, keepdim=True)
    y_BHTV = scores_BHTS @ v_BHTV + decayed_r_BHTK @ state_BHKV + present_BHT1 * v_BHTV
    kept_k_BHTK = k_BHTK * ((time - 1 - index_T1) * log_keep_H1K).exp()
    kept_state = state_BHKV * (time * log_keep_HK).exp()[..., None]
    return y_BHTV, kept_state + kept_k_BHTK.transpose(2, 3) @ v_BHTV


class TokenShift(nn.Module):
    """x_t + (x_{t-1} - x_t) share: two neighbours mixed channel by channel, in `count` ways."""

    def __init__(self, width: int, count: int) -> None:
        super().__init__()
        self.count = count
        self.share = nn.Parameter(torch.full((count * width,), 0.5))
        self.sections = {"share": (width,) * count}

    def forward(self, x_BTD: Tensor, cache: Cache | None, name: str) -> list[Tensor]:
        before_BTD = with_past(x_BTD, cache, 1, name)[:, :-1]
        return [x_BTD + (before_BTD - x_BTD) * share for share in self.share.chunk(self.count)]


class TimeMixing(nn.Module):
    """out(norm(r state) * silu(gate)): the receptance r reads the state of keys and values so far.

    The norm is taken in each head separately.
    """

    def __init__(self, options: Options) -> None:
        super().__init__()
        width, self.heads, self.chunk = options.width, options.heads, options.chunk
        if width % self.heads:
            raise UserError(
                f"params.yaml: models.rwkv.heads: {self.heads} heads do not divide the width"
                f" {width}; make the width a multiple of {self.heads}"
            )
        self.shift = TokenShift(width, 4)
        self.maps = nn.ModuleList(nn.Linear(width, width, bias=False) for _ in range(4))
        # Initially the channels' decays range from hardly any to nearly half in a token. Computed
        # on the CPU even when the model is built on the meta device, where torch would spend a
        # second on preparations.
        decay = torch.linspace(-6, 3, width, device="cpu")
        self.decay = nn.Parameter(decay.to(torch.get_default_device()))
        self.bonus = nn.Parameter(torch.full((width,), 0.5))
        self.head_outputs = Place()
        self.out = nn.Linear(width, width, bias=False)

    def forward(self, x_BTD: Tensor, cache: Cache | None) -> Tensor:
        batch, time, width = x_BTD.shape
        shifted = self.shift(x_BTD, cache, "before time mixing")
        *rkv, gate_BTD = [linear(x) for linear, x in zip(self.maps, shifted, strict=True)]
        r, k, v = (part.view(batch, time, self.heads, -1).transpose(1, 2) for part in rkv)
        log_keep_HK = (-MAX_LOG_DECAY * self.decay.sigmoid()).view(self.heads, -1)
        bonus_HK = self.bonus.view(self.heads, -1)
        state_BHKV = x_BTD.new_zeros(batch, self.heads, width // self.heads, width // self.heads)
        if cache is not None and cache.seen:
            state_BHKV = cache.tensors["state"]
        outputs = []
        split_rkv = [torch.split(part, self.chunk, dim=2) for part in (r, k, v)]
        for chunk_r, chunk_k, chunk_v in zip(*split_rkv, strict=True):
            y_BHTV, state_BHKV = one_chunk(
                log_keep_HK, bonus_HK, chunk_r, chunk_k, chunk_v, state_BHKV
            )
            outputs.append(y_BHTV)
        if cache is not None:
            cache.tensors["state"] = state_BHKV
        y_BTHV = self.head_outputs(rms_norm(torch.cat(outputs, dim=2)).transpose(1, 2))
        y_BTD = y_BTHV.reshape(batch, time, width)
        return self.out(y_BTD * nn.functional.silu(gate_BTD))


class ChannelMixing(nn.Module):
    """sigmoid(receptance) * out(relu(key)²): a feed-forward layer that reads one token back."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.shift = TokenShift(width, 2)
        self.receptance = nn.Linear(width, width, bias=False)
        self.key = nn.Linear(width, hidden, bias=False)
        self.units = Place()
        self.out = nn.Linear(hidden, width, bias=False)

    def forward(self, x_BTD: Tensor, cache: Cache | None) -> Tensor:
        for_receptance, for_key = self.shift(x_BTD, cache, "before channel mixing")
        key_BTE = self.key(for_key).relu()
        return self.receptance(for_receptance).sigmoid() * self.out(self.units(key_BTE * key_BTE))


class Block(nn.Module):
    """x + time_mixing(norm(x)), then x + channel_mixing(norm(x))."""

    def __init__(self, options: Options) -> None:
        super().__init__()
        width = options.width
        hidden = max(1, round(options.expansion * width))
        self.time_norm, self.time_mixing = Norm(width), TimeMixing(options)
        self.after_time_mixing = Place()
        self.channel_norm, self.channel_mixing = Norm(width), ChannelMixing(width, hidden)

    def forward(self, x_BTD: Tensor, cache: Cache | None = None) -> Tensor:
        x_BTD = x_BTD + self.time_mixing(self.time_norm(x_BTD), cache)
        x_BTD = self.after_time_mixing(x_BTD)
        return x_BTD + self.channel_mixing(self.channel_norm(x_BTD), cache)


class RWKV(LanguageModel):
    """Embedding, `layers` blocks, final norm, output head."""

    readout: nn.Linear

    def __init__(self, options: Options, vocabulary_size: int, context: int) -> None:
        super().__init__()
        width = options.width
        self.vocabulary_size, self.context, self.width = vocabulary_size, context, width
        self.embedding = nn.Embedding(vocabulary_size, width)
        self.blocks = nn.ModuleList(Block(options) for _ in range(options.layers))
        self.final_norm = Norm(width)
        self.readout = nn.Linear(width, vocabulary_size, bias=False)
        init_weights(self)

    def embed(self, tokens_BT: Tensor, cache: Cache | None = None) -> Tensor:
        return self.embedding(tokens_BT)

    def head(self, x_BTD: Tensor) -> Tensor:
        return self.readout(self.final_norm(x_BTD))
