"""What a layer with tables of n-grams shows, so that its rows can go to another vocabulary."""

from abc import ABC, abstractmethod
from typing import ClassVar

from torch import Tensor, nn


class NGramTables(nn.Module, ABC):
    """A module with a table for each order: its row is looked up by the last `order` tokens.

    Ids of an n-gram stand in the order of the text; `nothing` is what is before its beginning.
    """

    nothing: int
    """The vocabulary size."""
    tables: nn.ModuleList
    token_table: ClassVar[str]
    """The name of the embedding with one row for each token."""

    @property
    @abstractmethod
    def orders(self) -> list[int]:
        """Of each table: by how many tokens its rows are looked up."""

    @abstractmethod
    def is_exact(self, order: int) -> bool:
        """Whether each n-gram of the order has a row of its own."""

    @abstractmethod
    def rows_of(self, ids_NO: Tensor) -> Tensor:
        """The rows (N,) of n-grams of the order O in its table."""

    def row_count(self, number: int) -> int:
        """The rows of a table."""
        table = self.tables[number]
        assert isinstance(table, nn.Embedding)
        return table.num_embeddings

    @abstractmethod
    def rows_among(self, rows_N: Tensor, buckets: int, fewer: int) -> Tensor:
        """The rows that a hash would give with fewer buckets, where it gives these with more: a
        multiple of them.
        """

    @abstractmethod
    def beyond_token(self, ids_O: Tensor) -> Tensor:
        """What the n-grams that lie within these tokens and end at the last one add to that token's
        row.
        """
