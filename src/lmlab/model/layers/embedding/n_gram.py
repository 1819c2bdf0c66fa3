"""Token embeddings plus vectors for the last 2, 3, ... tokens (Bojanowski et al. 2017; Roy et al.
2022, "N-Grammer").

Each n-gram is looked up in a table of `buckets` vectors, at its own number where the table has a
row for all there can be, else at a hash of it (Tito Svenstrup et al. 2017), so that some share a
row. It costs a look-up, and gives the first block what it would otherwise need attention to put
together.
"""

import torch
from pydantic import Field
from torch import Tensor, nn

from lmlab.core.params import Params
from lmlab.model.layers.cache import Cache
from lmlab.model.layers.embedding.base import Embedding
from lmlab.model.noise import Dropout

# 2^32 divided by the golden ratio, and odd: neighbours land far apart (Knuth, section 6.4)
MULTIPLIER = 0x9E3779B1


class Options(Params):
    """Options of the embedding."""

    longest: int = Field(ge=2, le=8)
    buckets: int = Field(ge=1, le=2**24)
    row_width: int = Field(ge=0)
    dropout: float = Field(ge=0, lt=1)


class NGram(Embedding):
    """The token's vector, plus what stands for the 2-gram .. `longest`-gram that end in it.

    That is the sum of their rows, or where rows are narrow (`row_width`) a linear map of them side
    by side: then a table may have many more rows for the same memory (as in Lan et al. 2020 for
    tokens). With `dropout` training leaves out that share of the rows looked up, whole ones: by the
    second pass every n-gram of the text has been seen, and a model that could count on its row
    would be at a loss where text is new.
    """

    def __init__(self, options: Options, vocabulary_size: int, width: int) -> None:
        super().__init__()
        self.nothing = vocabulary_size
        """Stands for what is before the first token."""
        self.longest, self.buckets = options.longest, options.buckets
        self.tokens = nn.Embedding(vocabulary_size, width)
        orders = range(2, options.longest + 1)
        self.dropout = Dropout(options.dropout)
        self.tables = nn.ModuleList(
            nn.Embedding(self._height(order), options.row_width or width) for order in orders
        )
        self.widen = (
            nn.Linear(options.row_width * len(orders), width, bias=False)
            if options.row_width
            else None
        )

    def forward(self, tokens_BT: Tensor, cache: Cache | None = None) -> Tensor:
        before = self.longest - 1
        seen = nn.functional.pad(tokens_BT, (before, 0), value=self.nothing)
        if cache is not None:
            if "tokens" in cache.tensors:
                seen = torch.cat((cache.tensors["tokens"], tokens_BT), dim=1)
            cache.tensors["tokens"] = seen[:, -before:]
        rows = self._rows(seen, tokens_BT.shape[1])
        vectors = [table(row_BT) for table, row_BT in zip(self.tables, rows, strict=True)]
        if self.training and self.dropout.p:
            of_each = self.dropout(vectors[0].new_ones(*tokens_BT.shape, len(vectors)))
            vectors = [
                rows_BTD * of_each[..., order, None] for order, rows_BTD in enumerate(vectors)
            ]
        if self.widen is not None:
            return self.tokens(tokens_BT) + self.widen(torch.cat(vectors, dim=-1))
        return sum(vectors, start=self.tokens(tokens_BT))

    def _height(self, order: int) -> int:
        """How many rows the table of an order has."""
        return min(self.buckets, (self.nothing + 1) ** order)

    def _rows(self, seen: Tensor, time: int) -> list[Tensor]:
        """For each order the rows of the n-grams that end in the last `time` tokens."""
        tokens_BT = [
            seen[:, seen.shape[1] - time - back : seen.shape[1] - back]
            for back in range(self.longest)
        ]
        orders = range(2, self.longest + 1)
        exact = [order for order in orders if (self.nothing + 1) ** order <= self.buckets]
        rows = [
            sum(tokens_BT[back] * (self.nothing + 1) ** back for back in range(order))
            for order in exact
        ]
        hashed = [order for order in orders if order not in exact]
        # all orders at once: the longest begin, and the others come in where their first token is
        if hashed:
            number_OBT = torch.zeros(
                len(hashed), *tokens_BT[0].shape, dtype=torch.long, device=seen.device
            )
            for back in range(self.longest - 1, -1, -1):
                begun = number_OBT[max(0, back + 1 - hashed[0]) :]
                # 32 bits at a time, as the product of two such numbers fits into 64
                begun.bitwise_xor_(tokens_BT[back]).mul_(MULTIPLIER).bitwise_and_(2**32 - 1)
                begun.bitwise_xor_(begun >> 15)
            rows += (number_OBT % self.buckets).unbind()
        return rows
