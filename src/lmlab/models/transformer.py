"""A decoder-only transformer (Vaswani et al. 2017; Radford et al. 2019), normalised before each layer.

The file is the diagram: tokens are embedded, each block adds what attention and then what the feed-forward layer make of
the normalised stream, and the normalised result is read out as logits. The layers are handed in by name.
"""

from math import sqrt
from typing import Annotated

from pydantic import Field
from torch import Tensor, nn

from lmlab.layers.attention.base import Attention
from lmlab.layers.feed_forward.base import FeedForward
from lmlab.layers.memory import Memory
from lmlab.layers.position.base import Position
from lmlab.models.base import LanguageModel
from lmlab.params import Params
from lmlab.parts import Choice, OneOf


class Options(Params):
    """Options of the model."""

    layers: int = Field(ge=1)
    width: int = Field(ge=2)
    attention: Annotated[str, OneOf("layers.attention")]
    feed_forward: Annotated[str, OneOf("layers.feed_forward")]
    position: Annotated[str, OneOf("layers.position")]
    normalisation: Annotated[str, OneOf("layers.normalisation")]
    dropout: float = Field(ge=0, lt=1)
    tied: bool


class Block(nn.Module):
    """x + attention(norm(x)), then x + feed_forward(norm(x))."""

    def __init__(
        self, attention: Attention, feed_forward: FeedForward, norms: tuple[nn.Module, nn.Module], dropout: float
    ) -> None:
        super().__init__()
        self.attention_norm, self.feed_forward_norm = norms
        self.attention, self.feed_forward = attention, feed_forward
        self.dropout = nn.Dropout(dropout)

    def forward(self, x_BTD: Tensor, memory: Memory | None = None) -> Tensor:
        x_BTD = x_BTD + self.dropout(self.attention(self.attention_norm(x_BTD), memory))
        return x_BTD + self.dropout(self.feed_forward(self.feed_forward_norm(x_BTD)))


class Transformer(LanguageModel):
    """Embedding, `layers` blocks, normalisation, readout."""

    readout: nn.Linear

    def __init__(
        self,
        options: Options,
        vocabulary: int,
        context: int,
        attention: Choice,
        feed_forward: Choice,
        position: Choice,
        normalisation: Choice,
    ) -> None:
        super().__init__()
        width = options.width
        self.vocabulary, self.context, self.width = vocabulary, context, width
        self.embedding = nn.Embedding(vocabulary, width)
        self.position: Position = position.build(width, context)
        self.dropout = nn.Dropout(options.dropout)
        self.blocks = nn.ModuleList(
            Block(
                attention.build(width, context, self.position),
                feed_forward.build(width),
                (normalisation.build(width), normalisation.build(width)),
                options.dropout,
            )
            for _ in range(options.layers)
        )
        self.final_norm = normalisation.build(width)
        self.readout = nn.Linear(width, vocabulary, bias=False)
        self._start_weights()
        if options.tied:
            self.readout.weight = self.embedding.weight

    def embed(self, tokens_BT: Tensor, start: int = 0) -> Tensor:
        return self.dropout(self.position.embed(self.embedding(tokens_BT), start))

    def head(self, x_BTD: Tensor) -> Tensor:
        return self.readout(self.final_norm(x_BTD))

    def _start_weights(self) -> None:
        """Normal weights of standard deviation 0.02, smaller where a block writes to the stream (Radford et al. 2019)."""
        for module in self.modules():
            if isinstance(module, nn.Linear | nn.Embedding):
                nn.init.normal_(module.weight, std=0.02)
        for module in self.modules():
            if isinstance(module, Attention | FeedForward):
                nn.init.normal_(module.out.weight, std=0.02 / sqrt(2 * len(self.blocks)))
