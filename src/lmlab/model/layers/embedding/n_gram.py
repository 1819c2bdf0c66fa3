"""Token embeddings plus vectors for the last 2, 3, ... tokens (Bojanowski et al. 2017).

x = tokens[id] + sum over n of table_n[row of the n-gram that ends here] (Roy et al. 2022,
"N-Grammer"). A table has at most `buckets` rows: one for every possible n-gram where they fit,
otherwise a hash picks the row and some n-grams share one (Tito Svenstrup et al. 2017). It costs
only look-ups, and gives the first block what attention would otherwise have to assemble.
"""

import torch
from pydantic import Field
from torch import Tensor, nn

from lmlab.core.params import Params
from lmlab.model.layers.cache import Cache
from lmlab.model.layers.embedding.base import Embedding
from lmlab.model.layers.n_gram_tables import NGramTables
from lmlab.model.noise import Dropout

MULTIPLIER = 0x9E3779B1
"""2^32 divided by the golden ratio, made odd: neighbours land far apart (Knuth, section 6.4)."""


class Options(Params):
    """Options of the embedding."""

    longest: int = Field(ge=2, le=8)
    buckets: int = Field(ge=1, le=2**24)
    row_width: int = Field(ge=0)
    dropout: float = Field(ge=0, lt=1)


class NGram(NGramTables, Embedding):
    """The token's vector plus the vectors of the 2-gram, ..., `longest`-gram that end in it.

    With `row_width` 0 the rows are as wide as the model and are summed. Otherwise they are that
    narrow, are concatenated and go through a linear map: a table may then have many more rows for
    the same memory (as Lan et al. 2020 do for tokens).

    In training, `dropout` drops whole rows. By the second epoch every n-gram of the text has been
    seen, and a model that relied on its row would fail on new text.

    A hash goes by the tokens' `keys`. They are the ids, unless the model was given another
    vocabulary: a token keeps its key then whatever its id becomes, and its n-grams keep their rows.
    """

    token_table = "tokens"
    keys: Tensor
    """Of each token and of `nothing`, shape (V + 1,)."""

    def __init__(self, options: Options, vocabulary_size: int, width: int) -> None:
        super().__init__()
        self.nothing = vocabulary_size
        """The id that stands for what is before the first token."""
        self.longest, self.buckets = options.longest, options.buckets
        self.lookback = options.longest - 1
        self.register_buffer("keys", torch.arange(vocabulary_size + 1))
        self.tokens = nn.Embedding(vocabulary_size, width)
        self.dropout = Dropout(options.dropout)
        self.tables = nn.ModuleList(
            nn.Embedding(self._row_count(order), options.row_width or width)
            for order in self.orders
        )
        self.widen: nn.Linear | None = None
        if options.row_width:
            self.widen = nn.Linear(options.row_width * len(self.orders), width, bias=False)

    def forward(self, tokens_BT: Tensor, cache: Cache | None = None) -> Tensor:
        before = self.longest - 1
        seen_BS = nn.functional.pad(tokens_BT, (before, 0), value=self.nothing)
        if cache is not None:
            if "tokens" in cache.tensors:
                seen_BS = torch.cat((cache.tensors["tokens"], tokens_BT), dim=1)
            cache.tensors["tokens"] = seen_BS[:, -before:]
        rows = self._rows(seen_BS, tokens_BT.shape[1])
        vectors = [table(row_BT) for table, row_BT in zip(self.tables, rows, strict=True)]
        if self.training and self.dropout.p:
            mask_BTN = self.dropout(vectors[0].new_ones(*tokens_BT.shape, len(vectors)))
            vectors = [
                vector_BTR * mask_BTN[..., number, None]
                for number, vector_BTR in enumerate(vectors)
            ]
        if self.widen is not None:
            return self.tokens(tokens_BT) + self.widen(torch.cat(vectors, dim=-1))
        return sum(vectors, start=self.tokens(tokens_BT))

    @property
    def orders(self) -> list[int]:
        return list(range(2, self.longest + 1))

    def is_exact(self, order: int) -> bool:
        return self._possible(order) <= self.buckets

    def rows_of(self, ids_NO: Tensor) -> Tensor:
        order = ids_NO.shape[1]
        latest_first = list(ids_NO.flip(1).unbind(1))
        if self.is_exact(order):
            return self._exact_row(latest_first)
        padding = [torch.zeros_like(latest_first[0])] * (self.longest - order)
        keys = [self.keys[token_N] for token_N in latest_first]
        return self._hashed_rows(keys + padding, [order])[0]

    def rows_among(self, rows_N: Tensor, buckets: int, fewer: int) -> Tensor:
        return rows_N % fewer

    def beyond_token(self, ids_O: Tensor) -> Tensor:
        padded_S = nn.functional.pad(ids_O, (self.longest - 1, 0), value=self.nothing)
        vectors = []
        for order, table in zip(self.orders, self.tables, strict=True):
            row = table(self.rows_of(padded_S[None, -order:]))[0]
            vectors.append(row * (order <= len(ids_O)))
        if self.widen is not None:
            return self.widen(torch.cat(vectors))
        return torch.stack(vectors).sum(0)

    def _possible(self, order: int) -> int:
        """How many n-grams of an order there can be; any token may be `nothing`."""
        return (self.nothing + 1) ** order

    def _row_count(self, order: int) -> int:
        return min(self.buckets, self._possible(order))

    def _rows(self, seen_BS: Tensor, time: int) -> list[Tensor]:
        """For each order, the rows (B, T) of the n-grams that end in the last `time` tokens."""
        length = seen_BS.shape[1]
        tokens_BT = [
            seen_BS[:, length - time - back : length - back] for back in range(self.longest)
        ]
        exact = [order for order in self.orders if self.is_exact(order)]
        hashed = [order for order in self.orders if order not in exact]
        rows = [self._exact_row(tokens_BT[:order]) for order in exact]
        if hashed:
            rows += self._hashed_rows([self.keys[token_BT] for token_BT in tokens_BT], hashed)
        return rows

    def _exact_row(self, tokens_BT: list[Tensor]) -> Tensor:
        """The number whose digits in base V + 1 are the tokens, the latest last."""
        base = self.nothing + 1
        row_BT = torch.zeros_like(tokens_BT[0])
        for back, token_BT in enumerate(tokens_BT):
            row_BT = row_BT + token_BT * base**back
        return row_BT

    def _hashed_rows(self, keys_BT: list[Tensor], orders: list[int]) -> tuple[Tensor, ...]:
        """A hash of the n-gram of each order, all computed at once.

        Tokens are taken from the earliest on: the longest order begins, and each shorter one joins
        in at its own first token.
        """
        shape_OBT = (len(orders), *keys_BT[0].shape)
        hash_OBT = torch.zeros(shape_OBT, dtype=torch.long, device=keys_BT[0].device)
        for back in range(self.longest - 1, -1, -1):
            begun_OBT = hash_OBT[max(0, back + 1 - orders[0]) :]
            begun_OBT.bitwise_xor_(keys_BT[back])
            # kept to 32 bits, since the product of two such numbers fits into 64
            begun_OBT.mul_(MULTIPLIER).bitwise_and_(2**32 - 1)
            begun_OBT.bitwise_xor_(begun_OBT >> 15)
        return (hash_OBT % self.buckets).unbind()
