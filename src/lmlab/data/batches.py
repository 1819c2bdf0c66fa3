"""Shards as batches of (tokens, targets), in an order that depends on the seed and the step alone.

Each epoch visits the row groups in a new random order, one *pool* of them at a time. A pool's ids
are cut into windows of the context's length from a random offset on, and its windows are shuffled:
a small corpus is shuffled as a whole, and a large one needs no more memory than a pool. The only
state is a cache of the last pool: step 1,000 gives the same batch whether or not the 999 before it
were asked for.
"""

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lmlab.core.errors import UserError
from lmlab.data.shards import RowGroup, Shards
from lmlab.data.tokenizers.base import Ids


@dataclass
class _Pool:
    """Some row groups of an epoch, cut into shuffled windows."""

    groups: list[RowGroup]
    context: int
    seed: list[int]

    @cached_property
    def length(self) -> int:
        return sum(group.length for group in self.groups)

    @cached_property
    def offset(self) -> int:
        """Where the first window begins: less than a context, and early enough for one window and
        its last target.
        """
        rng = np.random.default_rng(self.seed)
        return int(rng.integers(min(self.context, self.length - self.context)))

    @property
    def windows(self) -> int:
        return (self.length - 1 - self.offset) // self.context

    @cached_property
    def order(self) -> NDArray[np.int64]:
        rng = np.random.default_rng([*self.seed, 1])
        return rng.permutation(self.windows)


class Batches:
    """The train split as batches: `at(step)` gives tokens and targets, int64 of shape (B, T).

    Raises UserError where the split has less than one context and its next token.
    """

    def __init__(
        self,
        shards: Shards,
        batch: int,
        context: int,
        seed: int,
        pool_tokens: int,
        windows_read: int = 0,
    ) -> None:
        self.shards, self.batch, self.context, self.seed = shards, batch, context, seed
        self.windows_read = windows_read
        self.pool_tokens = max(pool_tokens, context + 1)  # every pool has at least one window
        self.groups = shards.row_groups("train")
        self.tokens = sum(group.length for group in self.groups)
        if self.tokens < context + 1:
            raise UserError(
                f"the train split has {self.tokens:,} tokens, fewer than one context of {context}"
                " and its next token; give more text or a smaller train.context"
            )
        self._epoch, self._first_window = 0, 0
        self._pools = self._deal(0)
        self._loaded: tuple[list[RowGroup], Ids] | None = None

    def at(self, step: int, piece: int = 0, pieces: int = 1) -> tuple[Tensor, Tensor]:
        """The batch of a step: windows step * B to step * B + B - 1 of the endless sequence of
        shuffled windows, counted from the `windows_read` by an earlier run; or one of the equal
        pieces of it.
        """
        count = self.batch // pieces
        first_of_piece = self.windows_read + step * self.batch + piece * count
        rows: list[Ids] = []
        while len(rows) < count:
            pool, first = self._locate(first_of_piece + len(rows))
            ids = self._load(pool)
            for window in pool.order[first : first + count - len(rows)]:
                start = pool.offset + window * self.context
                rows.append(ids[start : start + self.context + 1])
        windows = torch.from_numpy(np.stack(rows).astype(np.int64))
        return windows[:, :-1].contiguous(), windows[:, 1:].contiguous()

    @property
    def first_pass(self) -> int:
        """How many windows there are before any text is repeated."""
        return sum(pool.windows for pool in self._deal(0))

    def _locate(self, window: int) -> tuple[_Pool, int]:
        """The pool that holds a window of the endless sequence, and the window's place in it."""
        if window < self._first_window:
            self._epoch, self._first_window = 0, 0
            self._pools = self._deal(0)
        while True:
            place = window - self._first_window
            for pool in self._pools:
                if place < pool.windows:
                    return pool, place
                place -= pool.windows
            self._first_window += sum(pool.windows for pool in self._pools)
            self._epoch += 1
            self._pools = self._deal(self._epoch)

    def _deal(self, epoch: int) -> list[_Pool]:
        """The epoch's pools: its row groups in a random order, in pools of at least `pool_tokens`.

        A last pool much smaller than that joins the one before it.
        """
        rng = np.random.default_rng([self.seed, epoch])
        pools: list[list[RowGroup]] = [[]]
        length = 0
        for index in rng.permutation(len(self.groups)):
            if length >= self.pool_tokens:
                pools.append([])
                length = 0
            pools[-1].append(self.groups[index])
            length += self.groups[index].length
        if len(pools) > 1 and length < max(self.pool_tokens // 2, self.context + 1):
            pools[-2:] = [pools[-2] + pools[-1]]
        return [
            _Pool(groups, self.context, [self.seed, epoch, number])
            for number, groups in enumerate(pools)
        ]

    def _load(self, pool: _Pool) -> Ids:
        """A pool's ids; the last pool's stay cached."""
        if self._loaded is None or self._loaded[0] != pool.groups:
            self._loaded = None  # freed first, so that two pools are never in memory
            ids = np.concatenate([self.shards.read(group) for group in pool.groups])
            self._loaded = (pool.groups, ids)
        return self._loaded[1]
