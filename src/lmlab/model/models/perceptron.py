"""A multilayer perceptron over the embeddings of the last tokens (Bengio et al. 2003).

Only the first block looks back, at `window` tokens including the current one; those above it work
on each position on its own. All are residual. The cache is the normalised embeddings of the last
window - 1 tokens.
"""

import torch
from pydantic import Field
from torch import Tensor, nn

from lmlab.core.params import Params
from lmlab.model.layers.cache import Cache
from lmlab.model.models.base import LanguageModel, Norm, init_weights, with_past
from lmlab.model.places import Place


class Options(Params):
    """Options of the model."""

    layers: int = Field(ge=1)
    width: int = Field(ge=1)
    window: int = Field(ge=1)
    expansion: float = Field(gt=0, le=1e6)


class Block(nn.Module):
    """x + out(tanh(up(norm(x) of the last `lookback` + 1 positions, concatenated)))."""

    def __init__(self, width: int, hidden: int, lookback: int) -> None:
        super().__init__()
        self.lookback = lookback
        self.norm = Norm(width)
        self.up = nn.Linear((lookback + 1) * width, hidden)
        self.input_sections = {"up": (width,) * (lookback + 1)}
        self.units = Place()
        self.out = nn.Linear(hidden, width, bias=False)

    def forward(self, x_BTD: Tensor, cache: Cache | None = None) -> Tensor:
        time = x_BTD.shape[1]
        seen_BSD = with_past(self.norm(x_BTD), cache, self.lookback)
        shifted = [seen_BSD[:, start : start + time] for start in range(self.lookback + 1)]
        window_BTE = torch.cat(shifted, dim=-1)
        return x_BTD + self.out(self.units(self.up(window_BTE).tanh()))


class Perceptron(LanguageModel):
    """Embedding, `layers` blocks, final norm, output head."""

    readout: nn.Linear

    def __init__(self, options: Options, vocabulary_size: int, context: int) -> None:
        super().__init__()
        width = options.width
        hidden = max(1, round(options.expansion * width))
        self.vocabulary_size, self.context, self.width = vocabulary_size, context, width
        self.embedding = nn.Embedding(vocabulary_size, width)
        self.blocks = nn.ModuleList(
            Block(width, hidden, lookback=options.window - 1 if layer == 0 else 0)
            for layer in range(options.layers)
        )
        self.final_norm = Norm(width)
        self.readout = nn.Linear(width, vocabulary_size, bias=False)
        init_weights(self)

    def embed(self, tokens_BT: Tensor, cache: Cache | None = None) -> Tensor:
        return self.embedding(tokens_BT)

    def head(self, x_BTD: Tensor) -> Tensor:
        return self.readout(self.final_norm(x_BTD))
