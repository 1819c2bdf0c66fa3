"""A selective state space model (Mamba-2: Dao & Gu 2024) in residual blocks.

A linear recurrence whose decay and inputs depend on the token: state_t = keep_t state_{t-1} +
value_t key_tᵀ, y_t = state_t query_t. Each head's state is a matrix that decays by one number per
token. Within a chunk the recurrence is computed as masked matrix products, and the state is passed
from chunk to chunk. The cache is the state and the last inputs of a short convolution: of fixed
size, with no limit to the receptive field but what the decays forget.
"""

from math import log

import torch
from pydantic import Field
from torch import Tensor, nn

from lmlab.core.errors import UserError
from lmlab.core.params import Params
from lmlab.model.layers.cache import Cache
from lmlab.model.models.base import LanguageModel, Norm, init_weights, with_past
from lmlab.model.places import Place


class Options(Params):
    """Options of the model."""

    layers: int = Field(ge=1)
    width: int = Field(ge=1)
    expansion: float = Field(gt=0, le=1e6)
    heads: int = Field(ge=1)
    state: int = Field(ge=1)
    kernel: int = Field(ge=1)
    chunk: int = Field(ge=1)


def one_chunk(
    log_keep_BHT: Tensor,
    values_BHTP: Tensor,
    keys_BTN: Tensor,
    queries_BTN: Tensor,
    state_BHPN: Tensor,
) -> tuple[Tensor, Tensor]:
    """y_BHTP and the last state of state <- keep state + value keyᵀ, y = state query.

    Position t reads what s wrote times all keeps after s up to t: exp(upto[t] - upto[s]), which is
    never above 1.
    """
    upto_BHT = log_keep_BHT.cumsum(dim=-1)
    time = upto_BHT.shape[-1]
    future_TS = torch.ones(time, time, dtype=torch.bool, device=upto_BHT.device).triu(1)
    log_kept_BHTS = upto_BHT[..., :, None] - upto_BHT[..., None, :]
    kept_BHTS = log_kept_BHTS.masked_fill(future_TS, float("-inf")).exp()
    scores_BTS = queries_BTN @ keys_BTN.transpose(1, 2)
    from_chunk = (kept_BHTS * scores_BTS[:, None]) @ values_BHTP
    read_state = queries_BTN[:, None] @ state_BHPN.transpose(2, 3)
    from_state = read_state * upto_BHT.exp()[..., None]
    kept_to_end_BHT = (upto_BHT[..., -1:] - upto_BHT).exp()
    kept_values = values_BHTP * kept_to_end_BHT[..., None]
    kept_state = state_BHPN * upto_BHT[..., -1:, None].exp()
    state_BHPN = kept_state + kept_values.transpose(2, 3) @ keys_BTN[:, None]
    return from_chunk + from_state, state_BHPN


class Mixer(nn.Module):
    """out(norm(state_space(convolution(mixed)) * silu(gate))), with inputs linear in x."""

    def __init__(self, options: Options) -> None:
        super().__init__()
        self.heads, self.state, self.chunk = options.heads, options.state, options.chunk
        self.inner = round(options.expansion * options.width)
        if not self.inner or self.inner % self.heads:
            raise UserError(
                f"params.yaml: models.state_space.heads: {self.heads} heads do not divide"
                f" expansion times width, which is {self.inner}; make that a multiple of"
                f" {self.heads}"
            )
        convolved = self.inner + 2 * self.state  # values, keys and queries
        self.split_sizes = (self.inner, convolved, self.heads)
        self.into = nn.Linear(options.width, sum(self.split_sizes), bias=False)
        self.convolution = nn.Conv1d(convolved, convolved, options.kernel, groups=convolved)
        inputs = (self.inner, self.state, self.state)
        self.sections = {"into": (self.inner, *inputs, self.heads), "convolution": inputs}
        self.step_bias = nn.Parameter(torch.empty(self.heads))
        self.log_decay = nn.Parameter(torch.empty(self.heads))
        self.skip = nn.Parameter(torch.empty(self.heads))
        self.head_outputs = Place()
        self.norm = Norm(self.inner)
        self.out = nn.Linear(self.inner, options.width, bias=False)

    def init_recurrence(self) -> None:
        """The paper's initialisation: steps from 0.001 to 0.1, decays from 1 to 16 a unit step."""
        # on the CPU even when the model is built on the meta device, where torch would load its
        # compiler for these functions
        decay = torch.empty(self.heads, device="cpu").uniform_(1, 16)
        step = torch.empty(self.heads, device="cpu").uniform_(log(0.001), log(0.1)).exp()
        bound = self.convolution.kernel_size[0] ** -0.5
        with torch.no_grad():
            self.convolution.weight.uniform_(-bound, bound)
            self.log_decay.copy_(decay.log())
            self.step_bias.copy_(step.expm1().log())  # the inverse of softplus
            self.skip.fill_(1)

    def forward(self, x_BTD: Tensor, cache: Cache | None) -> Tensor:
        batch, time, _ = x_BTD.shape
        gate_BTE, mixed, step_BTH = self.into(x_BTD).split(self.split_sizes, dim=-1)
        seen = with_past(mixed, cache, self.convolution.kernel_size[0] - 1, "inputs")
        mixed = nn.functional.silu(self.convolution(seen.transpose(1, 2)).transpose(1, 2))
        sizes = [self.inner, self.state, self.state]
        values, keys_BTN, queries_BTN = torch.split(mixed, sizes, dim=-1)
        values_BHTP = values.view(batch, time, self.heads, -1).transpose(1, 2)
        step_BHT = nn.functional.softplus(step_BTH + self.step_bias).transpose(1, 2)
        log_keep_BHT = -step_BHT * self.log_decay.exp()[:, None]
        y_BHTP = self._recur(
            log_keep_BHT, values_BHTP * step_BHT[..., None], keys_BTN, queries_BTN, cache
        )
        y_BHTP = y_BHTP + values_BHTP * self.skip[:, None, None]
        y_BTHP = self.head_outputs(y_BHTP.transpose(1, 2))
        y_BTE = y_BTHP.reshape(batch, time, self.inner)
        return self.out(self.norm(y_BTE * nn.functional.silu(gate_BTE)))

    def _recur(
        self,
        log_keep_BHT: Tensor,
        values_BHTP: Tensor,
        keys_BTN: Tensor,
        queries_BTN: Tensor,
        cache: Cache | None,
    ) -> Tensor:
        """The recurrence over all positions, chunk by chunk, from the state in the cache."""
        batch, heads, _, head_width = values_BHTP.shape
        state_BHPN = values_BHTP.new_zeros(batch, heads, head_width, self.state)
        if cache is not None and cache.seen:
            state_BHPN = cache.tensors["state"]
        chunks = zip(
            torch.split(log_keep_BHT, self.chunk, dim=2),
            torch.split(values_BHTP, self.chunk, dim=2),
            torch.split(keys_BTN, self.chunk, dim=1),
            torch.split(queries_BTN, self.chunk, dim=1),
            strict=True,
        )
        outputs = []
        for log_keep, values, keys, queries in chunks:
            y_BHTP, state_BHPN = one_chunk(log_keep, values, keys, queries, state_BHPN)
            outputs.append(y_BHTP)
        if cache is not None:
            cache.tensors["state"] = state_BHPN
        return torch.cat(outputs, dim=2)


class Block(nn.Module):
    """x + mixer(norm(x))."""

    def __init__(self, options: Options) -> None:
        super().__init__()
        self.norm, self.mixer = Norm(options.width), Mixer(options)

    def forward(self, x_BTD: Tensor, cache: Cache | None = None) -> Tensor:
        return x_BTD + self.mixer(self.norm(x_BTD), cache)


class StateSpace(LanguageModel):
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
        for module in self.modules():
            if isinstance(module, Mixer):
                module.init_recurrence()

    def embed(self, tokens_BT: Tensor, cache: Cache | None = None) -> Tensor:
        return self.embedding(tokens_BT)

    def head(self, x_BTD: Tensor) -> Tensor:
        return self.readout(self.final_norm(x_BTD))
