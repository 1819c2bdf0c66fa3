"""A table of n-grams: logits are looked up by the last tokens and summed; no hidden layer at all.

logits = sum over n of table_n[the last n tokens]. With order 2 this is exactly the bigram table.
What a model must beat to have learned more than which tokens follow which. (Such sums are maximum
entropy models: Rosenfeld 1996; with hashing: Mikolov et al. 2011.) The receptive field is order - 1
tokens, and the cache holds those.
"""

import torch
from pydantic import Field
from torch import Tensor, nn

from lmlab.core.params import Params
from lmlab.model.layers.cache import Cache
from lmlab.model.layers.n_gram_tables import NGramTables
from lmlab.model.models.base import LanguageModel, init_weights, with_past

PRIME = 2**31 - 1
GOLDEN = 2654435761
"""2**32 over the golden ratio, Knuth's multiplier: neighbouring numbers end up far apart."""


class Options(Params):
    """Options of the model."""

    order: int = Field(ge=2, le=32)
    buckets: int = Field(ge=1, lt=2**31)


class Sum(NGramTables):
    """The sum of one row of logits for every order.

    Order 1 has a single row, order n one for each bucket of the last n - 1 tokens. Where all
    combinations of those tokens fit into the buckets each has its own row; otherwise a hash picks
    one.
    """

    token_table = "tables.0"

    def __init__(self, vocabulary_size: int, order: int, buckets: int) -> None:
        super().__init__()
        self.nothing = vocabulary_size
        self.lookback = order - 2
        self.vocabulary_size, self.buckets = vocabulary_size, buckets
        # an older token may also be missing, before the beginning: hence the + 1
        self.combinations = [
            vocabulary_size * (vocabulary_size + 1) ** older for older in range(order - 1)
        ]
        self.unigram = nn.Embedding(1, vocabulary_size)
        self.tables = nn.ModuleList(
            nn.Embedding(min(count, buckets), vocabulary_size) for count in self.combinations
        )

    def forward(self, x_BTV: Tensor, cache: Cache | None = None) -> Tensor:
        tokens_BT1 = x_BTV.argmax(dim=-1, keepdim=True)
        time = x_BTV.shape[1]
        seen_BS = with_past(tokens_BT1 + 1, cache, self.lookback).squeeze(-1)  # 0: no token
        # the number of the combination, whose digits are its tokens
        number_BT = tokens_BT1.squeeze(-1)
        logits_BTV = self.unigram(torch.zeros_like(number_BT))
        for older, table in enumerate(self.tables):
            if older:
                start = self.lookback - older
                number_BT = self._with_digit(number_BT, seen_BS[:, start : start + time])
            logits_BTV = logits_BTV + table(self._row(number_BT, older + 1))
        return logits_BTV

    @property
    def orders(self) -> list[int]:
        return list(range(1, len(self.tables) + 1))

    def is_exact(self, order: int) -> bool:
        return self.combinations[order - 1] <= self.buckets

    def rows_of(self, ids_NO: Tensor) -> Tensor:
        latest_N, *older = ids_NO.flip(1).unbind(1)
        number_N = latest_N
        for id_N in older:
            number_N = self._with_digit(number_N, (id_N + 1) % (self.nothing + 1))
        return self._row(number_N, ids_NO.shape[1])

    def rows_among(self, rows_N: Tensor, buckets: int, fewer: int) -> Tensor:
        return rows_N * fewer // buckets

    def beyond_token(self, ids_O: Tensor) -> Tensor:
        rows = [
            table(self.rows_of(ids_O[None, -order:]))[0]
            for order, table in zip(self.orders, self.tables, strict=True)
            if 2 <= order <= len(ids_O)
        ]
        return sum(rows, start=torch.zeros_like(self.unigram.weight[0]))

    def _with_digit(self, number: Tensor, digit: Tensor) -> Tensor:
        # the remainder changes only numbers that will be hashed
        return (number * (self.vocabulary_size + 1) + digit) % PRIME

    def _row(self, number: Tensor, order: int) -> Tensor:
        return number if self.is_exact(order) else _bucket(number, self.buckets)


def _bucket(number: Tensor, buckets: int) -> Tensor:
    """A bucket for each number below 2**31, evenly spread (Knuth, section 6.4)."""
    return (number * GOLDEN % 2**32) * buckets // 2**32


class NGramTable(LanguageModel):
    """Tokens are one-hot vectors, and the only block maps them and those in its cache to logits."""

    readout: None

    def __init__(self, options: Options, vocabulary_size: int, context: int) -> None:
        super().__init__()
        self.vocabulary_size, self.context, self.width = vocabulary_size, context, vocabulary_size
        self.readout = None
        self.blocks = nn.ModuleList([Sum(vocabulary_size, options.order, options.buckets)])
        init_weights(self)

    def embed(self, tokens_BT: Tensor, cache: Cache | None = None) -> Tensor:
        one_hot_BTV = nn.functional.one_hot(tokens_BT, self.vocabulary_size)
        return one_hot_BTV.to(next(self.parameters()).dtype)

    def head(self, x_BTD: Tensor) -> Tensor:
        return x_BTD
