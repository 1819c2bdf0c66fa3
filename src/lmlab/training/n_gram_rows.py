"""Tables of n-grams for another vocabulary: which row becomes which.

N-grams of tokens that the old vocabulary had keep their rows, found by enumeration or, where a hash
shares rows out, by how often each occurs in the training text; others begin at zero.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import torch
from torch import Tensor

from lmlab.data.vocabularies import Vocabularies
from lmlab.model.layers.n_gram_tables import NGramTables
from lmlab.model.models.base import LanguageModel
from lmlab.training import row_maps
from lmlab.training.row_maps import RowMap

CHUNK = 1 << 18
"""N-grams that are looked up at a time."""


class Layer(NamedTuple):
    """A layer with tables of n-grams, in the old model and in the new one."""

    name: str
    old: NGramTables
    new: NGramTables

    @property
    def has_keys(self) -> bool:
        """Whether it finds rows by its tokens' keys."""
        return hasattr(self.new, "keys")


@dataclass(frozen=True)
class Table:
    """A table of n-grams in the old model and in the new one."""

    old: NGramTables
    new: NGramTables
    number: int
    both: Vocabularies

    @property
    def order(self) -> int:
        """How many tokens a row is looked up by."""
        return self.new.orders[self.number]

    def rows(self, text_N: Tensor) -> RowMap:
        """The map of its rows, with zeros where nothing is said."""
        every_row = torch.arange(self.new.row_count(self.number)).expand(2, -1)
        if self._rows_stay and self.both.has_only_grown:
            return row_maps.copies(every_row)
        if self.new.is_exact(self.order):
            return row_maps.copies(self._enumerated())
        return self._by_text(text_N)

    @property
    def _rows_stay(self) -> bool:
        """Whether a hash gives n-grams of kept tokens the row that they had: one by their keys, or
        one by ids that are all as they were.
        """
        exact = self.old.is_exact(self.order) or self.new.is_exact(self.order)
        same_ids = self.both.has_only_grown and self.old.nothing == self.new.nothing
        return not exact and (hasattr(self.new, "keys") or same_ids)

    def _enumerated(self) -> Tensor:
        """Pairs (new row, old row) of all n-grams of kept tokens."""
        tokens = torch.tensor(sorted(self.both.kept))
        earlier = torch.cat((tokens, torch.tensor([self.new.nothing])))
        ids_NO = torch.cartesian_prod(*[earlier] * (self.order - 1), tokens).reshape(-1, self.order)
        return torch.stack((self.new.rows_of(ids_NO), self.old.rows_of(self._old_ids[ids_NO])))

    def _by_text(self, text_N: Tensor) -> RowMap:
        """A row that several n-grams share becomes the mean of the rows that they had, by how often
        they occur; those with a new token count as zero.
        """
        totals = torch.zeros(self.new.row_count(self.number), dtype=torch.long)
        pairs = []
        windows_NO = text_N.unfold(0, self.order, 1) if len(text_N) >= self.order else text_N[:0]
        for ids_NO in torch.split(windows_NO, CHUNK):
            rows_N, old_ids_NO = self.new.rows_of(ids_NO), self._old_ids[ids_NO]
            totals += rows_N.bincount(minlength=len(totals))
            known_N = (old_ids_NO >= 0).all(dim=1)
            old_rows_K = self.old.rows_of(old_ids_NO[known_N])
            pairs.append(torch.stack((rows_N[known_N], old_rows_K), dim=1))
        pairs_P2, counts_P = torch.unique(torch.cat(pairs), dim=0, return_counts=True)
        shares_P = counts_P.double() / totals[pairs_P2[:, 0]]
        alone_P = shares_P == 1
        copied = pairs_P2[alone_P].T
        if self._rows_stay:  # those that the text does not have stay as well
            unseen = (totals == 0).nonzero().expand(-1, 2).T
            copied = torch.cat((copied, unseen), dim=1)
        return RowMap(copied, pairs_P2[~alone_P].T, shares_P[~alone_P])

    @cached_property
    def _old_ids(self) -> Tensor:
        """The old id of each new one and of `nothing`; -1 where there is none."""
        ids = torch.full((self.new.nothing + 1,), -1)
        for token, old in self.both.kept.items():
            ids[token] = old
        ids[-1] = self.old.nothing
        return ids


def n_gram_layers(old: LanguageModel, new: LanguageModel) -> Iterator[Layer]:
    """The layers with tables of n-grams of two models of the same parts."""
    for name, module in new.named_modules():
        if isinstance(module, NGramTables):
            before = old.get_submodule(name)
            assert isinstance(before, NGramTables)
            yield Layer(name, before, module)


def keys_of(layer: Layer, both: Vocabularies) -> Tensor:
    """The keys that kept tokens had; new ones get keys that no token has."""
    old_keys, size = layer.old.keys, both.new.vocabulary_size
    assert isinstance(old_keys, Tensor)
    first = int(old_keys.max()) + 1
    keys = torch.arange(first, first + size + 1)
    for token, old in both.kept.items():
        keys[token] = old_keys[old]
    keys[-1] = old_keys[-1]
    return keys
