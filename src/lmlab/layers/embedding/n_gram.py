"""Token embeddings plus vectors for the last 2, 3, ... tokens (Bojanowski et al. 2017; Roy et al. 2022, "N-Grammer").

Each n-gram is looked up in a table of `buckets` vectors, at its own number where the table has a row for all there can be,
else at a hash of it (Tito Svenstrup et al. 2017), so that some share a row. It costs a look-up, and gives the first block
what it would otherwise need attention to put together.
"""

import torch
from pydantic import Field
from torch import Tensor, nn

from lmlab.layers.embedding.base import Embedding
from lmlab.layers.memory import Memory
from lmlab.params import Params

MULTIPLIER = 0x9E3779B1  # 2^32 divided by the golden ratio, and odd: neighbours land far apart (Knuth, section 6.4)


class Options(Params):
    """Options of the embedding."""

    longest: int = Field(ge=2, le=8)
    buckets: int = Field(ge=1, le=2**24)
    row_width: int = Field(ge=0)
    dropout: float = Field(ge=0, lt=1)


class NGram(Embedding):
    """The token's vector, plus what stands for the 2-gram .. `longest`-gram that end in it.

    That is the sum of their rows, or where rows are narrow (`row_width`) a linear map of them side by side: then a table
    may have many more rows for the same memory (as in Lan et al. 2020 for tokens). With `dropout` training leaves out that
    share of the rows looked up, whole ones: by the second pass every n-gram of the text has been seen, and a model that
    could count on its row would be at a loss where text is new.
    """

    def __init__(self, options: Options, vocabulary: int, width: int) -> None:
        super().__init__()
        self.nothing = vocabulary
        """Stands for what is before the first token."""
        self.longest, self.buckets, self.dropout = options.longest, options.buckets, options.dropout
        self.tokens = nn.Embedding(vocabulary, width)
        orders = range(2, options.longest + 1)
        self.tables = nn.ModuleList(nn.Embedding(self._rows(order), options.row_width or width) for order in orders)
        self.widen = nn.Linear(options.row_width * len(orders), width, bias=False) if options.row_width else None

    def forward(self, tokens_BT: Tensor, memory: Memory | None = None) -> Tensor:
        before = self.longest - 1
        seen = nn.functional.pad(tokens_BT, (before, 0), value=self.nothing)
        if memory is not None:
            if "tokens" in memory.tensors:
                seen = torch.cat((memory.tensors["tokens"], tokens_BT), dim=1)
            memory.tensors["tokens"] = seen[:, -before:]
        time = tokens_BT.shape[1]
        vectors = [self._some(table(self._row(seen, order, time))) for order, table in enumerate(self.tables, start=2)]
        if self.widen is not None:
            return self.tokens(tokens_BT) + self.widen(torch.cat(vectors, dim=-1))
        return sum(vectors, start=self.tokens(tokens_BT))

    def _some(self, rows_BTD: Tensor) -> Tensor:
        if not (self.dropout and self.training):
            return rows_BTD
        return rows_BTD * nn.functional.dropout(rows_BTD.new_ones(*rows_BTD.shape[:2], 1), self.dropout)

    def _rows(self, order: int) -> int:
        return min(self.buckets, (self.nothing + 1) ** order)

    def _row(self, seen: Tensor, order: int, time: int) -> Tensor:
        """The row of the n-gram that ends in each of the last `time` tokens."""
        number = torch.zeros_like(seen[:, -time:])
        exact = (self.nothing + 1) ** order <= self.buckets
        for back in range(order - 1, -1, -1):
            token = seen[:, seen.shape[1] - time - back : seen.shape[1] - back]
            if exact:
                number = number * (self.nothing + 1) + token
            else:  # 32 bits at a time, as the product of two such numbers fits into 64
                number = ((number ^ token) * MULTIPLIER) % 2**32
                number = number ^ (number >> 15)
        return number % self._rows(order)
