"""Shards as batches of (tokens, targets), in an order that the seed and the step number alone
decide.

Each epoch visits the row groups in a new order, a *pool* of them at a time. A pool's ids are cut
into windows of the context's length behind a random first offset, and its windows are shuffled; so
a small corpus is shuffled as a whole and a large one needs no more memory than a pool. Nothing is
remembered between steps but what is loaded: step 1,000 gives the same batch whether or not the 999
before it were asked for.
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
    """Some row groups of an epoch, and how they are cut."""

    groups: list[RowGroup]
    context: int
    seed: list[int]

    @cached_property
    def length(self) -> int:
        return sum(group.length for group in self.groups)

    @cached_property
    def offset(self) -> int:
        """Where the first window begins: anywhere below a context that leaves room for one window
        and its target.
        """
        return int(
            np.random.default_rng(self.seed).integers(min(self.context, self.length - self.context))
        )

    @property
    def windows(self) -> int:
        return (self.length - 1 - self.offset) // self.context

    @cached_property
    def order(self) -> NDArray[np.int64]:
        return np.random.default_rng([*self.seed, 1]).permutation(self.windows)


class Batches:
    """The train split of some shards as batches. `at(step)` gives tokens and targets, each int64 of
    shape (B, T).
    """

    def __init__(
        self, shards: Shards, batch: int, context: int, seed: int, pool_tokens: int
    ) -> None:
        self.shards, self.batch, self.context, self.seed = shards, batch, context, seed
        self.pool_tokens = max(pool_tokens, context + 1)  # every pool has at least one window
        self.groups = shards.row_groups("train")
        self.tokens = sum(group.length for group in self.groups)
        if self.tokens < context + 1:
            raise UserError(
                f"the train split has {self.tokens:,} tokens, fewer than one context of {context}"
                " and its next token;"
                " give more text or a smaller train.context"
            )
        self._epoch, self._first_window = 0, 0
        self._pools = self._deal(0)
        self._loaded: tuple[list[RowGroup], Ids] | None = None

    def at(self, step: int) -> tuple[Tensor, Tensor]:
        """The batch of a step: windows step * B .. step * B + B - 1 of the endless sequence of
        shuffled windows.
        """
        window = step * self.batch
        rows: list[Ids] = []
        while len(rows) < self.batch:
            pool, place = self._locate(window)
            ids = self._load(pool)
            for index in pool.order[place : place + self.batch - len(rows)]:
                start = pool.offset + index * self.context
                rows.append(ids[start : start + self.context + 1])
            window = step * self.batch + len(rows)
        both = torch.from_numpy(np.stack(rows).astype(np.int64))
        return both[:, :-1].contiguous(), both[:, 1:].contiguous()

    @property
    def first_pass(self) -> int:
        """How many windows there are before any text comes a second time."""
        return sum(pool.windows for pool in self._deal(0))

    def _locate(self, window: int) -> tuple[_Pool, int]:
        """The pool that a window of the endless sequence lies in, and its place there."""
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
        """The epoch's pools: row groups in a random order, each pool at least `pool_tokens` long
        but for want of more.
        """
        order = np.random.default_rng([self.seed, epoch]).permutation(len(self.groups))
        pools: list[list[RowGroup]] = [[]]
        held = 0
        for index in order:
            if held >= self.pool_tokens:
                pools.append([])
                held = 0
            pools[-1].append(self.groups[index])
            held += self.groups[index].length
        if len(pools) > 1 and held < max(self.pool_tokens // 2, self.context + 1):
            pools[-2:] = [pools[-2] + pools[-1]]
        return [
            _Pool(groups, self.context, [self.seed, epoch, number])
            for number, groups in enumerate(pools)
        ]

    def _load(self, pool: _Pool) -> Ids:
        """A pool's ids; those last asked for are kept."""
        if self._loaded is None or self._loaded[0] != pool.groups:
            self._loaded = None  # the old ones go first, so that never two pools are held
            self._loaded = (
                pool.groups,
                np.concatenate([self.shards.read(group) for group in pool.groups]),
            )
        return self._loaded[1]
