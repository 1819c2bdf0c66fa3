"""A decoder-only transformer (Vaswani et al. 2017; Radford et al. 2019), assembled of parts.

Token ids are embedded as vectors x_BTD, the residual stream. Each of the `depth` blocks adds the
output of an attention layer and then of a feed-forward layer to it. The output head (`readout`)
maps the normalised stream to logits. Every layer is a part that params.yaml names, one file in a
folder of `layers/`.

Shapes: B sequences in a batch, T tokens in a sequence, D model width, V vocabulary size.
"""

from math import sqrt
from typing import Annotated, cast

from pydantic import Field
from torch import Tensor, nn

from lmlab.core.params import Params
from lmlab.core.registry import Choice, OneOf
from lmlab.model.layers.attention.base import Attention, ValueMap
from lmlab.model.layers.cache import Cache
from lmlab.model.layers.embedding.base import Embedding
from lmlab.model.layers.feed_forward.base import FeedForward
from lmlab.model.layers.position.base import Position
from lmlab.model.layers.residual.base import Residual
from lmlab.model.models.base import LanguageModel, to_autocast_dtype
from lmlab.model.noise import Dropout
from lmlab.model.places import Place

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
        """`width`, or WIDTH_PER_BLOCK * depth if that is 0."""
        return self.width or WIDTH_PER_BLOCK * self.depth


class Block(nn.Module):
    """x = x + attention(norm(x)), then x = x + feed_forward(norm(x)), by default.

    The `+` and the norm belong to the two residual connections. Each is called with the stream and
    a layer: it reads the layer's input from the stream, calls the layer, adds the output to the
    stream, and normalises before the layer (placement `pre`) or wherever else the placement says.

    s_BTS is the residual stream. With the `plain` connection it is x_BTD itself; value residual and
    hyper-connections carry more, so S may exceed D. `cache` is the block's own: its KV cache or
    recurrent state.
    """

    def __init__(
        self,
        attention: Attention,
        feed_forward: FeedForward,
        attention_residual: Residual,
        feed_forward_residual: Residual,
        dropout: float,
    ) -> None:
        super().__init__()
        self.lookback = attention.lookback
        self.attention = attention
        self.after_attention = Place()
        self.feed_forward = feed_forward
        self.attention_residual = attention_residual
        self.feed_forward_residual = feed_forward_residual
        self.attention_dropout = Dropout(dropout)
        self.feed_forward_dropout = Dropout(dropout)

    def forward(self, s_BTS: Tensor, cache: Cache | None = None) -> Tensor:
        # the annotation is a string because torch's compiler cannot evaluate this union
        def attention(x_BTD: Tensor, map_values: "ValueMap | None" = None) -> Tensor:
            return self.attention_dropout(self.attention(x_BTD, cache, map_values))

        def feed_forward(x_BTD: Tensor) -> Tensor:
            return self.feed_forward_dropout(self.feed_forward(x_BTD))

        s_BTS = self.attention_residual(s_BTS, attention)  # x + attention(norm(x))
        s_BTS = self.after_attention(s_BTS)
        s_BTS = self.feed_forward_residual(s_BTS, feed_forward)  # x + feed_forward(norm(x))
        return s_BTS


class Transformer(LanguageModel):
    """Embedding, `depth` blocks, final norm, output head."""

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
        self.embedding_lookback = self.embedding.lookback
        self.position: Position = position.build(width, context)
        self.dropout = Dropout(options.dropout)
        residuals: list[Residual] = [
            residual.build(width, index, placement.build(width, normalisation))
            for index in range(2 * options.depth)
        ]
        self.plain_stream = not residuals[0].widens
        self.blocks = nn.ModuleList()
        for number in range(options.depth):
            block = Block(
                attention.build(width, context, self.position),
                feed_forward.build(width),
                attention_residual=residuals[2 * number],
                feed_forward_residual=residuals[2 * number + 1],
                dropout=options.dropout,
            )
            self.blocks.append(block)
        self.final_norm = normalisation.build(width)
        self.readout = nn.Linear(width, vocabulary_size, bias=False)
        self.logit_soft_cap = options.logit_soft_cap
        self._init_weights()
        if options.tied:  # one matrix for both ends (Press & Wolf 2017)
            self.readout.weight = self.embedding.tokens.weight

    def embed(self, tokens_BT: Tensor, cache: Cache | None = None) -> Tensor:
        x_BTD = self.embedding(tokens_BT, cache)
        x_BTD = self.position.embed(x_BTD, cache.seen if cache else 0)
        x_BTD = self.dropout(to_autocast_dtype(x_BTD))
        if self.plain_stream:
            return x_BTD
        # a wider stream: the first connection expands the embeddings, the last one reduces it in
        # `head`
        first_block = cast(Block, self.blocks[0])
        return first_block.attention_residual.expand(x_BTD)

    def head(self, s_BTS: Tensor) -> Tensor:
        x_BTD = s_BTS
        if not self.plain_stream:
            last_block = cast(Block, self.blocks[-1])
            x_BTD = last_block.feed_forward_residual.reduce(s_BTS)
        logits_BTV = self.readout(self.final_norm(x_BTD))
        if self.logit_soft_cap:  # keeps every logit within (-cap, cap) (Gemma Team 2024)
            logits_BTV = self.logit_soft_cap * (logits_BTV / self.logit_soft_cap).tanh()
        return logits_BTV

    def _init_weights(self) -> None:
        """Draw weights from N(0, 0.02²) (Radford et al. 2019).

        Output projections, which write to the residual stream, get 0.02 / sqrt(2 depth).
        """
        for module in self.modules():
            if isinstance(module, nn.Linear | nn.Embedding):
                nn.init.normal_(module.weight, std=0.02)
        for module in self.modules():
            if isinstance(module, Attention | FeedForward) and module.out is not None:
                nn.init.normal_(module.out.weight, std=0.02 / sqrt(2 * len(self.blocks)))
