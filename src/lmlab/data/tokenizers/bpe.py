"""Byte-pair encoding: repeatedly merge the most frequent pair of adjacent tokens (Gage 1994).

As in Sennrich et al. 2016 merges stay within pre-tokens, and as in Radford et al. 2019 they begin
with the 256 bytes, so that no text is unknown. `plain_merges` and `plain_encode` are the textbook
algorithm; `merges` learns the same pairs but recounts only what a merge changes, and tiktoken
encodes texts to the same ids.
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
SEPARATOR = "│"
"""Separates the halves of a merge in JSON. It is not in Latin-1, so no half can contain it."""
FEWEST = 2
"""How often a pair must occur: one that occurs once is not worth an id."""


class Options(SizedOptions):
    """When to stop merging."""


class BPE(Tokenizer):
    """Ids 0 to 255 are the bytes; the merges follow in the order learned, with the BOS token among
    them.

    No two merges give the same bytes: the bytes of a token alone decide how it is merged, since its
    merges never reach beyond it. So tiktoken, which identifies tokens by their bytes and ranks them
    by their ids, merges in the same way.
    """

    def __init__(self, halves: list[tuple[bytes, bytes]], bos: int) -> None:
        self.bos = bos
        merged = [left + right for left, right in halves]
        self.token_bytes = with_bos([*BYTES, *merged], bos)
        ids = {piece: i for i, piece in enumerate(self.token_bytes) if piece}
        if len(ids) != len(halves) + 256:
            raise ValueError("two merges give the same bytes")
        self.merges: dict[Pair, int] = {}
        for left, right in halves:
            self.merges[ids[left], ids[right]] = ids[left + right]
        # no text is encoded as the special token, but without one the engine searches for it at
        # every character, at half the speed
        special = {"<|document|>": bos}
        self._engine = tiktoken.Encoding(
            "lmlab", pat_str=pretokens.PATTERN, mergeable_ranks=ids, special_tokens=special
        )

    @classmethod
    def fit(cls, options: Options, texts: Iterable[str]) -> Self:
        words = spelled_in_bytes(pretokens.count(texts))
        learned = merges(words, 256, options.vocabulary_size - 257)
        pieces = _with_merged(BYTES, learned)
        return cls(_halves(pieces, learned), 256 + len(learned))

    def grown(self, texts: Iterable[str], tokens: int) -> Self:
        """Continue merging where fitting stopped, with the pairs of the new texts."""
        counts = pretokens.count(texts)
        words = [(self._engine.encode_ordinary(word), count) for word, count in counts.items()]
        learned = merges(words, self.vocabulary_size, tokens)
        pieces = _with_merged(self.token_bytes, learned)
        return type(self)(_halves(pieces, [*self.merges, *learned]), self.bos)

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
        halves = []
        for merge in state["merges"]:
            left, right = map(from_readable, merge.split(SEPARATOR))
            halves.append((left, right))
        return cls(halves, state["special"]["bos"])


def _with_merged(pieces: list[bytes], pairs: list[Pair]) -> list[bytes]:
    """The bytes of each id, with those of the merges of these pairs as the next ids."""
    pieces = list(pieces)
    for left, right in pairs:
        pieces.append(pieces[left] + pieces[right])
    return pieces


def _halves(pieces: list[bytes], pairs: list[Pair]) -> list[tuple[bytes, bytes]]:
    return [(pieces[left], pieces[right]) for left, right in pairs]


Words = list[tuple[list[int], int]]
"""Distinct pre-tokens as ids, each with its number of occurrences."""


def spelled_in_bytes(counts: Counter[str]) -> Words:
    """Pre-tokens as the ids of their bytes."""
    return [(list(word.encode("utf-8")), count) for word, count in counts.items()]


def replaced(ids: list[int], pair: Pair, new: int) -> list[int]:
    """The ids with `new` in place of each occurrence of the pair, from left to right."""
    merged: list[int] = []
    i = 0
    while i < len(ids):
        if i + 1 < len(ids) and ids[i] == pair[0] and ids[i + 1] == pair[1]:
            merged.append(new)
            i += 2
        else:
            merged.append(ids[i])
            i += 1
    return merged


def plain_encode(word: bytes, merges: dict[Pair, int]) -> list[int]:
    """Repeatedly merge the pair that was learned first, wherever it occurs, until none is left."""
    ids = list(word)
    while known := [pair for pair in pairwise(ids) if pair in merges]:
        first = min(known, key=merges.__getitem__)
        ids = replaced(ids, first, merges[first])
    return ids


def plain_merges(words: Words, first_id: int, most: int) -> list[Pair]:
    """Repeatedly count all pairs and merge the most frequent one; of several that with the smallest
    ids.

    The first merge becomes `first_id`. There are `most` merges, or fewer where no pair occurs
    FEWEST times any more.
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
        new = first_id + len(learned)
        words = [(replaced(ids, best, new), count) for ids, count in words]
        learned.append(best)
    return learned


def merges(words: Words, first_id: int, most: int) -> list[Pair]:
    """The merges of `plain_merges`, where each step visits only the words that contain the pair.

    A heap orders the pairs by their count when they were pushed. Counts only fall after that (that
    of a pair rises only in the step that merges its newer half), so an outdated entry is pushed
    again with its current count.
    """
    spellings = [ids for ids, _ in words]
    counts: defaultdict[Pair, int] = defaultdict(int)
    words_with: defaultdict[Pair, set[int]] = defaultdict(set)
    for index, (ids, count) in enumerate(words):
        for pair in pairwise(ids):
            counts[pair] += count
            words_with[pair].add(index)
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
        new_pairs: set[Pair] = set()
        for index in words_with.pop(best):
            ids, count = spellings[index], words[index][1]
            merged = replaced(ids, best, new)
            for pair in pairwise(ids):
                counts[pair] -= count
            for pair in pairwise(merged):
                counts[pair] += count
                if new in pair:
                    words_with[pair].add(index)
                    new_pairs.add(pair)
            spellings[index] = merged
        for pair in new_pairs:
            heapq.heappush(heap, (-counts[pair], pair))
    return learned
