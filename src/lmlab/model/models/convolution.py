"""Gated causal convolutions (Dauphin et al. 2017), dilated (van den Oord et al. 2016): each layer
looks back more widely.

A block mixes `kernel` positions, spaced by its dilation, and opens or shuts the result number by
number. The memory is the normalised inputs that a block may still need. With dilation d it sees 1 +
(kernel - 1) (1 + d + d^2 + ...) tokens.
"""

from pydantic import Field
from torch import Tensor, nn

from lmlab.core.errors import UserError
from lmlab.core.params import Params
from lmlab.model.layers.cache import Cache
from lmlab.model.models.base import LanguageModel, Norm, init_weights, with_past

FARTHEST = 24
"""Base-2 logarithm of the number of tokens that a block may look back."""


class Options(Params):
    """Options of the model."""

    layers: int = Field(ge=1)
    width: int = Field(ge=1)
    kernel: int = Field(ge=2)
    dilation: int = Field(ge=1)


class Block(nn.Module):
    """x + value * sigmoid(gate), both convolutions of norm(x)."""

    def __init__(self, width: int, kernel: int, dilation: int) -> None:
        super().__init__()
        self.lookback = (kernel - 1) * dilation
        self.norm = Norm(width)
        self.value_gate = nn.Conv1d(width, 2 * width, kernel, dilation=dilation)

    def forward(self, x_BTD: Tensor, cache: Cache | None = None) -> Tensor:
        seen_BSD = with_past(self.norm(x_BTD), cache, self.lookback)
        value_BTD, gate_BTD = (
            self.value_gate(seen_BSD.transpose(1, 2)).transpose(1, 2).chunk(2, dim=-1)
        )
        return (
            x_BTD + value_BTD * gate_BTD.sigmoid()
        )  # torch's glu is one call, whose gate nothing could see or change


def _check_reach(options: Options) -> None:
    """Every block's input is padded by as many positions as it looks back, and dilations grow by
    powers.
    """
    if (options.kernel - 1) * options.dilation ** (options.layers - 1) > 2**FARTHEST:
        raise UserError(
            f"params.yaml: models.convolution: with kernel {options.kernel} and dilation"
            f" {options.dilation} the highest"
            f" layers would look back more than 2^{FARTHEST} tokens; set one of them lower, or"
            " layers"
        )


class Convolution(LanguageModel):
    """Embedding, `layers` blocks with dilations 1, d, d^2, ..., normalisation, readout."""

    readout: nn.Linear

    def __init__(self, options: Options, vocabulary_size: int, context: int) -> None:
        super().__init__()
        width = options.width
        _check_reach(options)
        self.vocabulary_size, self.context, self.width = vocabulary_size, context, width
        self.embedding = nn.Embedding(vocabulary_size, width)
        self.blocks = nn.ModuleList(
            Block(width, options.kernel, options.dilation**layer) for layer in range(options.layers)
        )
        self.final_norm = Norm(width)
        self.readout = nn.Linear(width, vocabulary_size, bias=False)
        init_weights(self)

    def embed(self, tokens_BT: Tensor, cache: Cache | None = None) -> Tensor:
        return self.embedding(tokens_BT)

    def head(self, x_BTD: Tensor) -> Tensor:
        return self.readout(self.final_norm(x_BTD))
