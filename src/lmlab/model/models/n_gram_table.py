"""A table of n-grams: logits are looked up by the last tokens and added; with order 2, exactly the
bigram table.

There is nothing to compute but the sum: what a model must beat to have learned more than which
tokens follow which. (Maximum entropy models are such sums: Rosenfeld 1996; by hashes: Mikolov et
al. 2011.) It sees order - 1 tokens; the memory is those.
"""

import torch
from pydantic import Field
from torch import Tensor, nn

from lmlab.core.params import Params
from lmlab.model.layers.cache import Cache
from lmlab.model.models.base import LanguageModel, init_weights, with_past

PRIME = 2**31 - 1
GOLDEN = 2654435761
"""2**32 over the golden ratio: what Knuth multiplies with, so that neighbouring numbers come to lie
far apart.
"""


class Options(Params):
    """Options of the model."""

    order: int = Field(ge=2, le=32)
    buckets: int = Field(ge=1, lt=2**31)


class Sum(nn.Module):
    """One row of logits for every order: order 1 has a single row, order n one for each bucket of
    the last n - 1 tokens.

    Where all those tokens' combinations fit into the buckets each has a row of its own, otherwise a
    hash picks one of them.
    """

    def __init__(self, vocabulary_size: int, order: int, buckets: int) -> None:
        super().__init__()
        self.lookback = order - 2
        self.vocabulary_size, self.buckets = vocabulary_size, buckets
        # an older token may also be none, before the beginning: hence the + 1
        self.combinations = [
            vocabulary_size * (vocabulary_size + 1) ** older for older in range(order - 1)
        ]
        self.unigram = nn.Embedding(1, vocabulary_size)
        self.tables = nn.ModuleList(
            nn.Embedding(min(count, buckets), vocabulary_size) for count in self.combinations
        )

    def forward(self, x_BTV: Tensor, cache: Cache | None = None) -> Tensor:
        tokens_BT1 = x_BTV.argmax(dim=-1, keepdim=True)
        seen_BS = with_past(tokens_BT1 + 1, cache, self.lookback).squeeze(-1)  # 0: no token
        number_BT = tokens_BT1.squeeze(-1)  # of the combination: its tokens are the digits
        logits_BTV = self.unigram(torch.zeros_like(number_BT))
        for older, (table, combinations) in enumerate(
            zip(self.tables, self.combinations, strict=True)
        ):
            if older:
                start = self.lookback - older
                digit_BT = seen_BS[:, start : start + number_BT.shape[1]]
                number_BT = (
                    number_BT * (self.vocabulary_size + 1) + digit_BT
                ) % PRIME  # changes only what will be hashed
            fits = combinations <= self.buckets
            logits_BTV = logits_BTV + table(number_BT if fits else _bucket(number_BT, self.buckets))
        return logits_BTV


def _bucket(number: Tensor, buckets: int) -> Tensor:
    """A bucket for each number below 2**31, spread evenly (Knuth, The Art of Computer Programming,
    6.4).
    """
    return (number * GOLDEN % 2**32) * buckets // 2**32


class NGramTable(LanguageModel):
    """A token is a vector with a single 1; the one block turns it, and those it remembers, into
    logits.
    """

    readout: None

    def __init__(self, options: Options, vocabulary_size: int, context: int) -> None:
        super().__init__()
        self.vocabulary_size, self.context, self.width = vocabulary_size, context, vocabulary_size
        self.readout = None
        self.blocks = nn.ModuleList([Sum(vocabulary_size, options.order, options.buckets)])
        init_weights(self)

    def embed(self, tokens_BT: Tensor, cache: Cache | None = None) -> Tensor:
        return nn.functional.one_hot(tokens_BT, self.vocabulary_size).to(
            next(self.parameters()).dtype
        )

    def head(self, x_BTD: Tensor) -> Tensor:
        return x_BTD
