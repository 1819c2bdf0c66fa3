"""A decoder-only transformer (Vaswani et al. 2017; Radford et al. 2019) whose layers are handed in
by name.

The file is the diagram: tokens are embedded, each block lets attention and then the feed-forward
layer join the stream, and the normalised result is read out as logits.
"""

from math import sqrt
from typing import Annotated

from pydantic import Field
from torch import Tensor, nn

from lmlab.core.params import Params
from lmlab.core.registry import Choice, OneOf
from lmlab.model.layers.attention.base import Attention
from lmlab.model.layers.cache import Cache
from lmlab.model.layers.embedding.base import Embedding
from lmlab.model.layers.feed_forward.base import FeedForward
from lmlab.model.layers.position.base import Position
from lmlab.model.layers.residual.base import Residual
from lmlab.model.models.base import LanguageModel, working
from lmlab.model.noise import Dropout

WIDTH_PER_BLOCK = 32


class Options(Params):
    """Options of the model."""

    depth: int = Field(ge=1)
    width: int = Field(ge=0)
    embedding: Annotated[str, OneOf("layers.embedding")]
    position: Annotated[str, OneOf("layers.position")]
    attention: Annotated[str, OneOf("layers.attention")]
    feed_forward: Annotated[str, OneOf("layers.feed_forward")]
    normalisation: Annotated[str, OneOf("layers.normalisation")]
    placement: Annotated[str, OneOf("layers.placement")]
    residual: Annotated[str, OneOf("layers.residual")]
    dropout: float = Field(ge=0, lt=1)
    logit_soft_cap: float = Field(ge=0)
    tied: bool

    @property
    def whole_width(self) -> int:
        """The width, or what follows from the depth where it is 0."""
        return self.width or WIDTH_PER_BLOCK * self.depth


class Block(nn.Module):
    """Attention, then the feed-forward layer, each joined to the stream by its residual
    connection.
    """

    def __init__(
        self,
        attention: Attention,
        feed_forward: FeedForward,
        residuals: tuple[Residual, Residual],
        dropout: float,
    ) -> None:
        super().__init__()
        self.attention, self.feed_forward = attention, feed_forward
        self.attention_residual, self.feed_forward_residual = residuals
        self.attention_dropout, self.feed_forward_dropout = Dropout(dropout), Dropout(dropout)

    def forward(self, s_BTS: Tensor, cache: Cache | None = None) -> Tensor:
        s_BTS = self.attention_residual(
            s_BTS, lambda x, values: self.attention_dropout(self.attention(x, cache, values))
        )
        return self.feed_forward_residual(
            s_BTS, lambda x, values: self.feed_forward_dropout(self.feed_forward(x))
        )


class Transformer(LanguageModel):
    """Embedding, `depth` blocks, normalisation, readout."""

    readout: nn.Linear

    def __init__(
        self,
        options: Options,
        vocabulary_size: int,
        context: int,
        embedding: Choice,
        position: Choice,
        attention: Choice,
        feed_forward: Choice,
        normalisation: Choice,
        placement: Choice,
        residual: Choice,
    ) -> None:
        super().__init__()
        width = options.whole_width
        self.vocabulary_size, self.context, self.width = vocabulary_size, context, width
        self.embedding: Embedding = embedding.build(vocabulary_size, width)
        self.position: Position = position.build(width, context)
        self.dropout = Dropout(options.dropout)
        joins: list[Residual] = [
            residual.build(width, place, placement.build(width, normalisation))
            for place in range(2 * options.depth)
        ]
        self.blocks = nn.ModuleList(
            Block(
                attention.build(width, context, self.position),
                feed_forward.build(width),
                pair,
                options.dropout,
            )
            for pair in zip(joins[::2], joins[1::2], strict=True)
        )
        # bound methods, not submodules: the connections belong to their blocks
        self.open, self.close = joins[0].open, joins[-1].close
        self.plain_stream = not joins[0].widens
        self.final_norm = normalisation.build(width)
        self.readout = nn.Linear(width, vocabulary_size, bias=False)
        self.logit_soft_cap = options.logit_soft_cap
        self._init_weights()
        if options.tied:
            self.readout.weight = self.embedding.tokens.weight

    def embed(self, tokens_BT: Tensor, cache: Cache | None = None) -> Tensor:
        x_BTD = self.position.embed(self.embedding(tokens_BT, cache), cache.seen if cache else 0)
        return self.open(self.dropout(working(x_BTD)))

    def head(self, s_BTS: Tensor) -> Tensor:
        logits_BTV = self.readout(self.final_norm(self.close(s_BTS)))
        if self.logit_soft_cap:  # (Gemma Team 2024): no logit leaves (-cap, cap)
            logits_BTV = self.logit_soft_cap * (logits_BTV / self.logit_soft_cap).tanh()
        return logits_BTV

    def _init_weights(self) -> None:
        """Normal weights of standard deviation 0.02, smaller where a block writes to the stream
        (Radford et al. 2019).
        """
        for module in self.modules():
            if isinstance(module, nn.Linear | nn.Embedding):
                nn.init.normal_(module.weight, std=0.02)
        for module in self.modules():
            if isinstance(module, Attention | FeedForward) and module.out is not None:
                nn.init.normal_(module.out.weight, std=0.02 / sqrt(2 * len(self.blocks)))
