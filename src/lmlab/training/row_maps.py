"""A map from the rows of an old table to those of a new one."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

CHUNK = 1 << 18
"""Terms that are summed at a time."""


@dataclass(frozen=True)
class RowMap:
    """Rows of a new table from those of an old one: copies, to the last bit, and weighted sums."""

    copies: Tensor
    """Pairs (new row, old row), shape (2, C)."""
    terms: Tensor
    """Pairs (new row, old row), shape (2, M); a new row is the sum of its terms."""
    shares: Tensor
    """What the old row of each term is multiplied by, shape (M,)."""

    def apply(self, old: Tensor, otherwise: Tensor, axis: int = 0) -> Tensor:
        """A table of the shape of `otherwise`, which has the rows that nothing is said of."""
        new = otherwise.movedim(axis, 0).clone()
        source = old.movedim(axis, 0)
        new[self.terms[0]] = 0
        for start in range(0, len(self.shares), CHUNK):
            rows, old_rows = self.terms[:, start : start + CHUNK]
            shares = self.shares[start : start + CHUNK].to(source.dtype)
            shares = shares.reshape(-1, *[1] * (source.ndim - 1))
            new.index_add_(0, rows, source[old_rows] * shares)
        new[self.copies[0]] = source[self.copies[1]]
        return new.movedim(0, axis).contiguous()


def means(copied: Mapping[int, int], sources: Mapping[int, Sequence[int]]) -> RowMap:
    """Copies, and the mean of several old rows for each of other new ones."""
    terms = [(row, old_row) for row, old_rows in sources.items() for old_row in old_rows]
    shares = [1 / len(old_rows) for old_rows in sources.values() for _ in old_rows]
    return RowMap(_pairs(copied.items()), _pairs(terms), torch.tensor(shares, dtype=torch.float64))


def copies(pairs: Tensor) -> RowMap:
    """Copies alone, from pairs (new row, old row), shape (2, C)."""
    return RowMap(pairs, _pairs([]), torch.zeros(0, dtype=torch.float64))


def _pairs(pairs: Iterable[tuple[int, int]]) -> Tensor:
    return torch.tensor(list(pairs), dtype=torch.long).reshape(-1, 2).T
