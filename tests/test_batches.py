import random
from collections import Counter
from itertools import pairwise

import numpy as np
import pytest
import torch
from small import ShardsOf

from lmlab.core.errors import UserError
from lmlab.data import documents
from lmlab.data.batches import Batches
from lmlab.data.shards import Shards

LARGE = 10**9


@pytest.fixture
def small_row_groups(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(documents, "ROW_GROUP_BYTES", 150)
    monkeypatch.setattr(documents, "PART_CHARACTERS", 50)


@pytest.fixture
def numbered(shards_of: ShardsOf, small_row_groups: None) -> Shards:
    """1,000 different characters in one document and many row groups: each token occurs once, so
    its place is known.
    """
    shards, _ = shards_of("".join(map(chr, range(1000, 2000))))
    assert len(shards.row_groups("train")) > 4
    return shards


def windows(batches: Batches, steps: range) -> list[tuple[int, ...]]:
    """Each window of some steps with its last target."""
    found = []
    for step in steps:
        tokens, targets = batches.at(step)
        found += [
            (*row.tolist(), int(target[-1])) for row, target in zip(tokens, targets, strict=True)
        ]
    return found


def same(one: tuple[torch.Tensor, torch.Tensor], other: tuple[torch.Tensor, torch.Tensor]) -> bool:
    return all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


def test_targets_are_the_tokens_that_follow(numbered: Shards) -> None:
    stream = numbered.stream("train").tolist()
    tokens, targets = Batches(numbered, batch=3, context=7, seed=0, pool_tokens=LARGE).at(5)
    assert tokens.dtype == targets.dtype == torch.int64
    assert tokens.shape == targets.shape == (3, 7)
    assert torch.equal(tokens[:, 1:], targets[:, :-1])
    for row, target in zip(tokens.tolist(), targets.tolist(), strict=True):
        inside = [stream.index(token) for token in row + target[-1:]]
        jumps = [b - a for a, b in pairwise(inside) if b - a != 1]
        assert len(jumps) <= 1  # where two row groups meet that are no neighbours


@pytest.mark.parametrize("pool_tokens", [1, 300, LARGE])
@pytest.mark.parametrize("context", [5, 200])
def test_an_epoch_reads_almost_all_text_and_none_twice(
    numbered: Shards, context: int, pool_tokens: int
) -> None:
    batches = Batches(numbered, batch=1, context=context, seed=3, pool_tokens=pool_tokens)
    start = 0
    for epoch in range(3):
        pools = batches._deal(epoch)
        assert sorted(group for pool in pools for group in pool.groups) == sorted(
            numbered.row_groups("train")
        )
        assert all(pool.windows >= 1 for pool in pools)
        count = sum(pool.windows for pool in pools)
        targets = Counter(
            token
            for window in windows(batches, range(start, start + count))
            for token in window[1:]
        )
        assert set(targets.values()) == {1}
        assert len(targets) == count * context
        assert batches.tokens - count * context <= len(pools) * 2 * context
        start += count


def test_pools_hold_what_they_should(numbered: Shards) -> None:
    batches = Batches(numbered, batch=1, context=10, seed=0, pool_tokens=300)
    lengths = [pool.length for pool in batches._deal(0)]
    assert len(lengths) > 1
    assert sum(lengths) == batches.tokens
    assert all(length >= 150 for length in lengths)
    assert len(Batches(numbered, batch=1, context=10, seed=0, pool_tokens=LARGE)._deal(0)) == 1


@pytest.mark.parametrize("pool_tokens", [1, 300, LARGE])
def test_a_step_does_not_depend_on_what_was_asked_before(
    numbered: Shards, pool_tokens: int
) -> None:
    steps = list(range(60))  # several epochs
    straight = Batches(numbered, batch=4, context=20, seed=0, pool_tokens=pool_tokens)
    expected = [straight.at(step) for step in steps]
    shuffled = Batches(numbered, batch=4, context=20, seed=0, pool_tokens=pool_tokens)
    random.Random(0).shuffle(steps)
    assert all(same(shuffled.at(step), expected[step]) for step in steps)
    for step in steps[:5]:
        resumed = Batches(numbered, batch=4, context=20, seed=0, pool_tokens=pool_tokens)
        assert same(resumed.at(step), expected[step])
        assert same(resumed.at(step), expected[step])


def test_how_windows_are_batched_does_not_change_their_order(numbered: Shards) -> None:
    one = Batches(numbered, batch=1, context=20, seed=0, pool_tokens=300)
    seven = Batches(numbered, batch=7, context=20, seed=0, pool_tokens=300)
    assert windows(one, range(140)) == windows(seven, range(20))


def test_seeds_are_orders(numbered: Shards) -> None:
    def some(seed: int) -> list[tuple[int, ...]]:
        return windows(
            Batches(numbered, batch=8, context=20, seed=seed, pool_tokens=LARGE), range(5)
        )

    assert some(0) == some(0)
    assert some(0) != some(1)
    assert sorted(some(0)) != sorted(some(1))  # cut elsewhere, too
    assert some(2**40) != some(0)


def test_epochs_differ(numbered: Shards) -> None:
    batches = Batches(numbered, batch=1, context=20, seed=0, pool_tokens=LARGE)
    count = batches._deal(0)[0].windows
    first, second = windows(batches, range(count)), windows(batches, range(count, 2 * count))
    assert first != second


@pytest.mark.parametrize("context", [1, 2, 3, 8])
@pytest.mark.parametrize("batch", [1, 5])
def test_the_shortest_texts_give_batches_too(shards_of: ShardsOf, context: int, batch: int) -> None:
    text = "".join(map(chr, range(100, 100 + 2 * context + 3)))
    for length in sorted({context, context + 1, 2 * context - 1, 2 * context, 2 * context + 1}):
        shards, _ = shards_of(text[:length], "x")  # with the BOS token, length + 1
        stream = shards.stream("train")
        every = {tuple(stream[i : i + context + 1].tolist()) for i in range(len(stream) - context)}
        for seed in range(4):
            batches = Batches(shards, batch=batch, context=context, seed=seed, pool_tokens=LARGE)
            read = windows(batches, range(8))
            assert len(read) == 8 * batch
            assert set(read) <= every


def test_every_place_of_a_short_text_is_reached_in_time(shards_of: ShardsOf) -> None:
    shards, _ = shards_of("abcdefghi", "x")  # 10 tokens with the document's
    read = windows(Batches(shards, batch=2, context=4, seed=0, pool_tokens=LARGE), range(50))
    assert {token for window in read for token in window[1:]} == set(
        shards.stream("train")[1:].tolist()
    )


@pytest.mark.parametrize("length", [1, 3, 6])
def test_less_than_a_context_is_refused(shards_of: ShardsOf, length: int) -> None:
    shards, _ = shards_of("abcdefgh"[:length], "x")
    with pytest.raises(UserError, match=rf"{length + 1} tokens.*one context of 7.*train\.context"):
        Batches(shards, batch=1, context=7, seed=0, pool_tokens=LARGE)


def test_a_pool_smaller_than_a_context_is_made_large_enough(
    shards_of: ShardsOf, small_row_groups: None
) -> None:
    # row groups of every length, also shorter than a context
    shards, _ = shards_of([chr(97 + number) * (number * 7) for number in range(1, 20)])
    assert min(group.length for group in shards.row_groups("train")) < 160
    for seed in range(5):
        batches = Batches(shards, batch=3, context=160, seed=seed, pool_tokens=1)
        assert all(pool.length > 160 for epoch in range(4) for pool in batches._deal(epoch))
        batches.at(10)


def test_row_groups_are_read_once_while_they_are_in_use(
    numbered: Shards, monkeypatch: pytest.MonkeyPatch
) -> None:
    reads: Counter[object] = Counter()
    read = Shards.read

    def counted(shards: Shards, group: object) -> np.ndarray:
        reads[group] += 1
        return read(shards, group)  # type: ignore[arg-type]

    monkeypatch.setattr(Shards, "read", counted)
    batches = Batches(numbered, batch=1, context=20, seed=0, pool_tokens=300)
    epoch = sum(pool.windows for pool in batches._deal(0))
    windows(batches, range(epoch))
    assert set(reads.values()) == {1}
    assert len(reads) == len(numbered.row_groups("train"))


def test_a_single_row_group_is_read_once_for_all_epochs(
    shards_of: ShardsOf, monkeypatch: pytest.MonkeyPatch
) -> None:
    shards, _ = shards_of("some text " * 20)
    batches = Batches(shards, batch=4, context=20, seed=0, pool_tokens=LARGE)
    batches.at(0)
    monkeypatch.setattr(Shards, "read", lambda *_: pytest.fail("read again"))
    batches.at(50)
