"""A minimal gated recurrent unit (Feng et al. 2024, "Were RNNs All We Needed?") in residual blocks.

h_t = (1 - z_t) h_{t-1} + z_t candidate_t. Gate z and candidate depend on the token alone, so the
states of all positions come from one parallel scan instead of a loop. The cache is the last state
of each block: of fixed size, with no limit to the receptive field but what the gates forget.
"""

import torch
from pydantic import Field
from torch import Tensor, nn

from lmlab.core.params import Params
from lmlab.model.layers.cache import Cache
from lmlab.model.models.base import LanguageModel, Norm, init_weights
from lmlab.model.places import Place


class Options(Params):
    """Options of the model."""

    layers: int = Field(ge=1)
    width: int = Field(ge=1)
    state_expansion: float = Field(gt=0, le=1e6)
    expansion: float = Field(gt=0, le=1e6)


def scan(keep_BTE: Tensor, add_BTE: Tensor) -> Tensor:
    """All states h_t = keep_t h_{t-1} + add_t from a first state of 0, shape (B, T, E).

    Takes log2(T) rounds (Hillis & Steele 1986): after each, a position holds the sum over twice as
    many positions up to its own. `keep` should be between 0 and 1: its products may vanish, but
    nothing is divided by them. (The paper's cumulative sums of logarithms are stable as well; on a
    CPU they took three times as long, and in float32 lost one more digit.)
    """
    step, time = 1, keep_BTE.shape[1]
    while step < time:
        add_later = add_BTE[:, step:] + keep_BTE[:, step:] * add_BTE[:, :-step]
        keep_later = keep_BTE[:, step:] * keep_BTE[:, :-step]
        add_BTE = torch.cat((add_BTE[:, :step], add_later), dim=1)
        keep_BTE = torch.cat((keep_BTE[:, :step], keep_later), dim=1)
        step *= 2
    return add_BTE


class Recurrence(nn.Module):
    """out(h) of h_t = (1 - z_t) h_{t-1} + z_t candidate_t with z = sigmoid(gate)."""

    def __init__(self, width: int, state: int) -> None:
        super().__init__()
        self.update_candidate = nn.Linear(width, 2 * state)
        self.sections = {"update_candidate": (state, state)}
        self.state = Place()
        self.out = nn.Linear(state, width, bias=False)

    def forward(self, x_BTD: Tensor, cache: Cache | None) -> Tensor:
        gate_BTE, candidate_BTE = self.update_candidate(x_BTD).chunk(2, dim=-1)
        keep_BTE = (-gate_BTE).sigmoid()
        add_BTE = gate_BTE.sigmoid() * candidate_BTE
        if cache is not None and cache.seen:
            first_B1E = add_BTE[:, :1] + keep_BTE[:, :1] * cache.tensors["state"]
            add_BTE = torch.cat((first_B1E, add_BTE[:, 1:]), dim=1)
        h_BTE = scan(keep_BTE, add_BTE)
        if cache is not None:
            cache.tensors["state"] = h_BTE[:, -1:]
        return self.out(self.state(h_BTE))


class FeedForward(nn.Module):
    """out(gelu(up(x))) at each position on its own."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.up = nn.Linear(width, hidden, bias=False)
        self.units = Place()
        self.out = nn.Linear(hidden, width, bias=False)

    def forward(self, x_BTD: Tensor) -> Tensor:
        return self.out(self.units(nn.functional.gelu(self.up(x_BTD))))


class Block(nn.Module):
    """x + recurrence(norm(x)), then x + feed_forward(norm(x))."""

    def __init__(self, width: int, state: int, hidden: int) -> None:
        super().__init__()
        self.recurrence_norm, self.recurrence = Norm(width), Recurrence(width, state)
        self.after_recurrence = Place()
        self.feed_forward_norm, self.feed_forward = Norm(width), FeedForward(width, hidden)

    def forward(self, x_BTD: Tensor, cache: Cache | None = None) -> Tensor:
        x_BTD = x_BTD + self.recurrence(self.recurrence_norm(x_BTD), cache)
        x_BTD = self.after_recurrence(x_BTD)
        return x_BTD + self.feed_forward(self.feed_forward_norm(x_BTD))


class MinGRU(LanguageModel):
    """Embedding, `layers` blocks, final norm, output head."""

    readout: nn.Linear

    def __init__(self, options: Options, vocabulary_size: int, context: int) -> None:
        super().__init__()
        width = options.width
        state = max(1, round(options.state_expansion * width))
        hidden = max(1, round(options.expansion * width))
        self.vocabulary_size, self.context, self.width = vocabulary_size, context, width
        self.embedding = nn.Embedding(vocabulary_size, width)
        self.blocks = nn.ModuleList(Block(width, state, hidden) for _ in range(options.layers))
        self.final_norm = Norm(width)
        self.readout = nn.Linear(width, vocabulary_size, bias=False)
        init_weights(self)

    def embed(self, tokens_BT: Tensor, cache: Cache | None = None) -> Tensor:
        return self.embedding(tokens_BT)

    def head(self, x_BTD: Tensor) -> Tensor:
        return self.readout(self.final_norm(x_BTD))
