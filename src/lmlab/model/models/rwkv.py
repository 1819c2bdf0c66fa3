"""RWKV, in the form of Eagle (Peng et al. 2023, 2024): linear attention whose every channel forgets
at a rate of its own.

Both layers of a block look one token back by themselves (token shift); the first looks farther by a
matrix for each head, to which every token adds its key times its value. The memory is those
matrices and the last input of both layers: of a fixed size, and it sees as far back as the decays
let it.
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

FASTEST = exp(-0.5)
"""Most that the logarithm of a channel falls by in a token (as in RWKV-7). Over a chunk of 64 that
is a factor of 1e17.
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
    """y_BHTV and the last state of `y = r (state + bonus * k vᵀ); state = keep * state + k vᵀ`,
    position by position.

    What s wrote reaches t with keep^(t - 1 - s), split into keep^t at the receptance and keep^-(s +
    1) at the key. The second grows, but no farther than `FASTEST` and the chunk allow.
    """
    time = r_BHTK.shape[2]
    at_T1 = torch.arange(time, device=r_BHTK.device, dtype=r_BHTK.dtype)[:, None]
    log_keep_H1K = log_keep_HK[:, None]
    reading = r_BHTK * (at_T1 * log_keep_H1K).exp()
    written = k_BHTK * (-(at_T1 + 1) * log_keep_H1K).exp()
    scores_BHTS = (reading @ written.transpose(2, 3)).tril(-1)
    present_BHT1 = (r_BHTK * bonus_HK[:, None] * k_BHTK).sum(dim=-1, keepdim=True)
    y_BHTV = scores_BHTS @ v_BHTV + reading @ state_BHKV + present_BHT1 * v_BHTV
    kept = k_BHTK * ((time - 1 - at_T1) * log_keep_H1K).exp()
    return y_BHTV, state_BHKV * (time * log_keep_HK).exp()[..., None] + kept.transpose(
        2, 3
    ) @ v_BHTV


class TokenShift(nn.Module):
    """x and the token before it, mixed channel by channel in `count` ways."""

    def __init__(self, width: int, count: int) -> None:
        super().__init__()
        self.count = count
        self.share = nn.Parameter(torch.full((count * width,), 0.5))

    def forward(self, x_BTD: Tensor, cache: Cache | None, name: str) -> list[Tensor]:
        before_BTD = with_past(x_BTD, cache, 1, name)[:, :-1]
        return [x_BTD + (before_BTD - x_BTD) * share for share in self.share.chunk(self.count)]


class TimeMixing(nn.Module):
    """out(norm(what the receptance reads of the keys and values so far) * silu(gate)), normalised
    head by head.
    """

    def __init__(self, options: Options) -> None:
        super().__init__()
        width, self.heads, self.chunk = options.width, options.heads, options.chunk
        if width % self.heads:
            raise UserError(
                f"params.yaml: models.rwkv.heads: {self.heads} heads do not divide the width"
                f" {width};"
                f" make the width a multiple of {self.heads}"
            )
        self.shift = TokenShift(width, 4)
        self.maps = nn.ModuleList(nn.Linear(width, width, bias=False) for _ in range(4))
        # At first channels forget at all rates, from hardly at all to nearly half in a token. Made
        # on the CPU also when the model is built without storage: torch would spend a second on
        # preparing that.
        self.decay = nn.Parameter(
            torch.linspace(-6, 3, width, device="cpu").to(torch.get_default_device())
        )
        self.bonus = nn.Parameter(torch.full((width,), 0.5))
        self.out = nn.Linear(width, width, bias=False)

    def forward(self, x_BTD: Tensor, cache: Cache | None) -> Tensor:
        batch, time, width = x_BTD.shape
        shifted = self.shift(x_BTD, cache, "before time mixing")
        *read_write, gate_BTD = [linear(x) for linear, x in zip(self.maps, shifted, strict=True)]
        r, k, v = (part.view(batch, time, self.heads, -1).transpose(1, 2) for part in read_write)
        log_keep_HK = (-FASTEST * self.decay.sigmoid()).view(self.heads, -1)
        bonus_HK = self.bonus.view(self.heads, -1)
        state_BHKV = x_BTD.new_zeros(batch, self.heads, width // self.heads, width // self.heads)
        if cache is not None and cache.seen:
            state_BHKV = cache.tensors["state"]
        outputs = []
        for of_r, of_k, of_v in zip(
            *(torch.split(part, self.chunk, dim=2) for part in (r, k, v)), strict=True
        ):
            y_BHTV, state_BHKV = one_chunk(log_keep_HK, bonus_HK, of_r, of_k, of_v, state_BHKV)
            outputs.append(y_BHTV)
        if cache is not None:
            cache.tensors["state"] = state_BHKV
        y_BTHV = rms_norm(torch.cat(outputs, dim=2)).transpose(1, 2)
        return self.out(y_BTHV.reshape(batch, time, width) * nn.functional.silu(gate_BTD))


class ChannelMixing(nn.Module):
    """sigmoid(receptance) * out(relu(key)^2): a feed-forward layer that sees one token back."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.shift = TokenShift(width, 2)
        self.receptance, self.key = (
            nn.Linear(width, width, bias=False),
            nn.Linear(width, hidden, bias=False),
        )
        self.out = nn.Linear(hidden, width, bias=False)

    def forward(self, x_BTD: Tensor, cache: Cache | None) -> Tensor:
        for_receptance, for_key = self.shift(x_BTD, cache, "before channel mixing")
        key_BTE = self.key(for_key).relu()
        return self.receptance(for_receptance).sigmoid() * self.out(key_BTE * key_BTE)


class Block(nn.Module):
    """x + time_mixing(norm(x)), then x + channel_mixing(norm(x))."""

    def __init__(self, options: Options) -> None:
        super().__init__()
        width, hidden = options.width, max(1, round(options.expansion * options.width))
        self.time_norm, self.time_mixing = Norm(width), TimeMixing(options)
        self.channel_norm, self.channel_mixing = Norm(width), ChannelMixing(width, hidden)

    def forward(self, x_BTD: Tensor, cache: Cache | None = None) -> Tensor:
        x_BTD = x_BTD + self.time_mixing(self.time_norm(x_BTD), cache)
        return x_BTD + self.channel_mixing(self.channel_norm(x_BTD), cache)


class RWKV(LanguageModel):
    """Embedding, `layers` blocks, normalisation, readout."""

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
