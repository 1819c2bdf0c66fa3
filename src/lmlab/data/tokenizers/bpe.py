"""Byte-pair encoding: bytes, and what merging the most frequent neighbours again and again makes of
them (Gage 1994).

As in Sennrich et al. 2016 merges stay within pre-tokens, and as in Radford et al. 2019 they begin
from the 256 bytes, so that no text is unknown. `plain_merges` and `plain_encode` are the algorithm
as one would write it down; `merges` learns the same pairs by recounting only what a merge has
changed, and texts are encoded by tiktoken's engine to the same ids.
"""

import heapq
from collections import Counter, defaultdict
from collections.abc import Iterable
from itertools import pairwise
from typing import Any, Self

import tiktoken

from lmlab.data import pretokens
from lmlab.data.tokenizers.base import (
    BYTES,
    Ids,
    SizedOptions,
    Tokenizer,
    from_readable,
    joined,
    readable,
    with_bos,
)

Pair = tuple[int, int]
SEPARATOR = (
    "│"  # stands between the halves of a merge in JSON; no sign of Latin-1, so no half can hold it
)
FEWEST = 2  # a pair that occurs once only is not worth an id


class Options(SizedOptions):
    """How far to go on merging."""


class BPE(Tokenizer):
    """Ids 0..255 are the bytes, then follow the merges in the order they were learned, with the BOS
    token among them.

    No two merges make the same bytes: how a token comes about is decided by its bytes alone, since
    no merge that it was made by reaches beyond it. So tiktoken, which knows tokens by their bytes
    and ranks them by their ids, merges alike.
    """

    def __init__(self, halves: list[tuple[bytes, bytes]], bos: int) -> None:
        self.bos = bos
        self.token_bytes = with_bos([*BYTES, *(left + right for left, right in halves)], bos)
        ids = {piece: place for place, piece in enumerate(self.token_bytes) if piece}
        if len(ids) != len(halves) + 256:
            raise ValueError("two merges make the same bytes")
        self.merges: dict[Pair, int] = {
            (ids[left], ids[right]): ids[left + right] for left, right in halves
        }
        # no text is read as the special token, but with none the engine looks for one at every
        # character, at half speed
        special = {"<|document|>": bos}
        self._engine = tiktoken.Encoding(
            "lmlab", pat_str=pretokens.PATTERN, mergeable_ranks=ids, special_tokens=special
        )

    @classmethod
    def fit(cls, options: Options, texts: Iterable[str]) -> Self:
        learned = merges(
            spelled_in_bytes(pretokens.count(texts)), 256, options.vocabulary_size - 257
        )
        pieces = list(BYTES)
        for left, right in learned:
            pieces.append(pieces[left] + pieces[right])
        return cls([(pieces[left], pieces[right]) for left, right in learned], 256 + len(learned))

    def grown(self, texts: Iterable[str], tokens: int) -> Self:
        """Merging goes on from where it stopped, in the new texts."""
        words = [
            (self._engine.encode_ordinary(word), count)
            for word, count in pretokens.count(texts).items()
        ]
        learned = merges(words, self.vocabulary_size, tokens)
        pieces = list(self.token_bytes)
        for left, right in learned:
            pieces.append(pieces[left] + pieces[right])
        return type(self)(
            [(pieces[left], pieces[right]) for left, right in [*self.merges, *learned]], self.bos
        )

    def encode(self, text: str) -> Ids:
        return self._engine.encode_to_numpy(pretokens.whole(text), disallowed_special=())

    def decode(self, ids: Ids) -> str:
        return joined(self.token_bytes, ids)

    def state(self) -> dict[str, Any]:
        names = [readable(piece) for piece in self.token_bytes]
        halves = [f"{names[left]}{SEPARATOR}{names[right]}" for left, right in self.merges]
        return {"special": {"bos": self.bos}, "merges": halves}

    @classmethod
    def from_state(cls, state: dict[str, Any]) -> Self:
        halves = [tuple(map(from_readable, merge.split(SEPARATOR))) for merge in state["merges"]]
        return cls([(left, right) for left, right in halves], state["special"]["bos"])


Words = list[tuple[list[int], int]]
"""Distinct pre-tokens as ids, each with how often it occurs."""


def spelled_in_bytes(counts: Counter[str]) -> Words:
    """Pre-tokens as the ids of their bytes."""
    return [(list(word.encode("utf-8")), count) for word, count in counts.items()]


def replaced(ids: list[int], pair: Pair, new: int) -> list[int]:
    """The ids with `new` for each occurrence of the pair, from the left."""
    out: list[int] = []
    at = 0
    while at < len(ids):
        if at + 1 < len(ids) and ids[at] == pair[0] and ids[at + 1] == pair[1]:
            out.append(new)
            at += 2
        else:
            out.append(ids[at])
            at += 1
    return out


def plain_encode(word: bytes, merges: dict[Pair, int]) -> list[int]:
    """Merge the pair that was learned first wherever it stands, until no pair is left that was
    learned.
    """
    ids = list(word)
    while known := [pair for pair in pairwise(ids) if pair in merges]:
        first = min(known, key=merges.__getitem__)
        ids = replaced(ids, first, merges[first])
    return ids


def plain_merges(words: Words, first_id: int, most: int) -> list[Pair]:
    """Count all pairs, merge the most frequent one (of several the one with the smallest ids), and
    again.

    The first merge makes `first_id`. There are at most `most` merges, fewer if no pair occurs
    FEWEST times.
    """
    learned: list[Pair] = []
    while len(learned) < most:
        counts: Counter[Pair] = Counter()
        for ids, count in words:
            for pair in pairwise(ids):
                counts[pair] += count
        best = min(counts, key=lambda pair: (-counts[pair], pair), default=None)
        if best is None or counts[best] < FEWEST:
            break
        words = [(replaced(ids, best, first_id + len(learned)), count) for ids, count in words]
        learned.append(best)
    return learned


def merges(words: Words, first_id: int, most: int) -> list[Pair]:
    """The merges of `plain_merges`, where each step visits only the words that hold the pair.

    A heap holds the pairs by the count they had when they were put there; counts only fall after
    that (a pair rises only while its newer half is being made), so an entry that is out of date is
    put back with its present count.
    """
    spelled = [ids for ids, _ in words]
    counts: defaultdict[Pair, int] = defaultdict(int)
    where: defaultdict[Pair, set[int]] = defaultdict(set)
    for place, (ids, count) in enumerate(words):
        for pair in pairwise(ids):
            counts[pair] += count
            where[pair].add(place)
    heap = [(-count, pair) for pair, count in counts.items()]
    heapq.heapify(heap)
    learned: list[Pair] = []
    while heap and len(learned) < most:
        expected, best = heapq.heappop(heap)
        if counts[best] < FEWEST:
            continue
        if counts[best] != -expected:
            heapq.heappush(heap, (-counts[best], best))
            continue
        new = first_id + len(learned)
        learned.append(best)
        risen: set[Pair] = set()
        for place in where.pop(best):
            ids, count = spelled[place], words[place][1]
            merged = replaced(ids, best, new)
            for pair in pairwise(ids):
                counts[pair] -= count
            for pair in pairwise(merged):
                counts[pair] += count
                if new in pair:
                    where[pair].add(place)
                    risen.add(pair)
            spelled[place] = merged
        for pair in risen:
            heapq.heappush(heap, (-counts[pair], pair))
    return learned
