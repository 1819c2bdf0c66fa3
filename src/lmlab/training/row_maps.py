"""A map from the rows of an old table to those of a new one."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

CHUNK = 1 << 18
"""Terms that are summed at a time."""


@dataclass(frozen=True)
class RowMap:
    """Rows of a new table from those of an old one: copies, to the last bit, and sums of shares."""

    copies: Tensor
    """Pairs (new row, old row), shape (2, C)."""
    terms: Tensor
    """Pairs (new row, old row), shape (2, M); a new row is the sum of its terms."""
    shares: Tensor
    """What the old row of each term is multiplied by, shape (M,)."""
    means: Sequence[tuple[Tensor, Tensor]] = ()
    """New rows, and the old rows that each of them is the mean of."""

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
        for rows, old_rows in self.means:
            new[rows] = source[old_rows].mean(dim=0)
        new[self.copies[0]] = source[self.copies[1]]
        return new.movedim(0, axis).contiguous()


def copies(pairs: Tensor) -> RowMap:
    """Copies alone, from pairs (new row, old row), shape (2, C)."""
    return RowMap(pairs, pairs[:, :0], torch.zeros(0, dtype=torch.float64))


def means(copied: Mapping[int, int], sources: Mapping[int, Sequence[int]]) -> RowMap:
    """Copies, and for other new rows the mean of several old ones; where many new rows have one and
    the same list of sources, it is computed once.
    """
    rows_of: dict[int, list[int]] = {}
    for row, old_rows in sources.items():
        rows_of.setdefault(id(old_rows), []).append(row)
    pairs = torch.tensor(list(copied.items()), dtype=torch.long).reshape(-1, 2).T
    groups = [
        (torch.tensor(rows), torch.tensor(list(sources[rows[0]]))) for rows in rows_of.values()
    ]
    return RowMap(pairs, pairs[:, :0], torch.zeros(0, dtype=torch.float64), groups)
