"""Gated causal convolutions (Dauphin et al. 2017), dilated (van den Oord et al. 2016).

A block convolves `kernel` positions, spaced by its dilation, and gates each number of the result.
Dilations grow with depth: the receptive field is 1 + (kernel - 1) (1 + d + d^2 + ...) tokens. The
cache is the normalised inputs that a block may still need.
"""

from pydantic import Field
from torch import Tensor, nn

from lmlab.core.errors import UserError
from lmlab.core.params import Params
from lmlab.model.layers.cache import Cache
from lmlab.model.models.base import LanguageModel, Norm, init_weights, with_past
from lmlab.model.places import Place

MAX_LOG_LOOKBACK = 24
"""Base-2 logarithm of the largest number of tokens that a block may look back."""


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
        self.sections = {"value_gate": (width, width)}
        self.units = Place()

    def forward(self, x_BTD: Tensor, cache: Cache | None = None) -> Tensor:
        seen_BSD = with_past(self.norm(x_BTD), cache, self.lookback)
        convolved_BTE = self.value_gate(seen_BSD.transpose(1, 2)).transpose(1, 2)
        value_BTD, gate_BTD = convolved_BTE.chunk(2, dim=-1)
        # not torch's glu: in that one call, nothing could observe or change the gate
        return x_BTD + self.units(value_BTD * gate_BTD.sigmoid())


def _check_lookback(options: Options) -> None:
    """Raises UserError where dilations, which grow as powers, would make the padding too long."""
    if (options.kernel - 1) * options.dilation ** (options.layers - 1) > 2**MAX_LOG_LOOKBACK:
        raise UserError(
            f"params.yaml: models.convolution: with kernel {options.kernel} and dilation"
            f" {options.dilation} the highest layers would look back more than"
            f" 2^{MAX_LOG_LOOKBACK} tokens; set one of them lower, or layers"
        )


class Convolution(LanguageModel):
    """Embedding, `layers` blocks with dilations 1, d, d^2, ..., final norm, output head."""

    readout: nn.Linear

    def __init__(self, options: Options, vocabulary_size: int, context: int) -> None:
        super().__init__()
        width = options.width
        _check_lookback(options)
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
