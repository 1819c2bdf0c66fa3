"""Unigram language model: the pieces that make the text likeliest, each word spelled by its best
pieces (Kudo 2018).

Pieces are strings of bytes within pre-tokens. Expectation maximisation gives each a probability,
summing over all ways to cut every distinct word at once; then those that the text would miss least
are dropped, and again, until few enough are left. The 256 bytes always stay, so nothing is unknown.
"""

from array import array
from collections import Counter
from collections.abc import Iterable
from itertools import pairwise
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from lmlab.data import pretokens
from lmlab.data.tokenizers.base import (
    BYTES,
    Ids,
    SizedOptions,
    Spellings,
    Tokenizer,
    from_readable,
    joined,
    readable,
    with_bos,
)

Integers = NDArray[np.int64]
Floats = NDArray[np.float64]

LONGEST = 16  # bytes in a piece
FEWEST = 2  # a string that occurs once only is no candidate
CANDIDATES, FEWEST_CANDIDATES = (
    8,
    10_000,
)  # pieces to begin with, for each that shall be left, and at least
KEPT = 0.75  # share of the pieces that a round of dropping leaves
STEPS, LAST_STEPS = 2, 4  # of expectation maximisation, before pieces are dropped and in the end
TINY = 1e-300  # stands for a probability of zero, whose logarithm is no number


class Options(SizedOptions):
    """How many pieces to keep."""


class Unigram(Tokenizer):
    """Ids 0..255 are the bytes, then follow the pieces, likeliest first, with the BOS token among
    them.
    """

    def __init__(self, scores: dict[bytes, float], bos: int) -> None:
        if list(scores)[:256] != BYTES:
            raise ValueError("a vocabulary that does not begin with the bytes")
        self.bos = bos
        self.scores = scores
        self.token_bytes = with_bos(list(scores), bos)
        ids = {piece: place for place, piece in enumerate(self.token_bytes) if piece}
        self._spellings = Spellings(lambda word: [ids[piece] for piece in viterbi(word, scores)])

    @classmethod
    def fit(cls, options: Options, texts: Iterable[str]) -> Self:
        shares = learned(pretokens.count(texts), BYTES, options.vocabulary_size - 257)
        added = sorted(list(shares)[256:], key=lambda piece: (-shares[piece], piece))
        return cls(
            {piece: float(np.log(shares[piece])) for piece in [*BYTES, *added]}, 256 + len(added)
        )

    def grown(self, texts: Iterable[str], tokens: int) -> Self:
        """New pieces join the old, all of which stay; probabilities are then half the old ones,
        half those of the texts.
        """
        shares = learned(pretokens.count(texts), list(self.scores), tokens)
        added = sorted(list(shares)[len(self.scores) :], key=lambda piece: (-shares[piece], piece))
        if not added:
            return self
        old = {piece: np.exp(score) for piece, score in self.scores.items()}
        mixed = {piece: (old.get(piece, 0.0) + shares[piece]) / 2 for piece in [*old, *added]}
        return type(self)({piece: float(np.log(share)) for piece, share in mixed.items()}, self.bos)

    def encode(self, text: str) -> Ids:
        return self._spellings.encode(text)

    def decode(self, ids: Ids) -> str:
        return joined(self.token_bytes, ids)

    def state(self) -> dict[str, Any]:
        scores = {readable(piece): score for piece, score in self.scores.items()}
        return {"special": {"bos": self.bos}, "log_probabilities": scores}

    @classmethod
    def from_state(cls, state: dict[str, Any]) -> Self:
        scores = {
            from_readable(name): float(score)
            for name, score in dict(state["log_probabilities"]).items()
        }
        return cls(scores, state["special"]["bos"])


def viterbi(word: bytes, scores: dict[bytes, float]) -> list[bytes]:
    """The pieces that spell the word with the highest sum of log probabilities."""
    best = [0.0] + [-np.inf] * len(word)
    begins = [0] * (
        len(word) + 1
    )  # where the last piece of the best spelling of each beginning begins
    for end in range(1, len(word) + 1):
        for start in range(max(0, end - LONGEST), end):
            score = scores.get(word[start:end])
            if score is not None and best[start] + score > best[end]:
                best[end], begins[end] = best[start] + score, start
    cuts = [len(word)]
    while cuts[-1]:
        cuts.append(begins[cuts[-1]])
    return [word[start:end] for start, end in pairwise(reversed(cuts))]


class _Sweep:
    """Log sums over all paths from one side, for every word at once: as many vectorised steps as
    the longest word has bytes.

    Every edge adds to the sum at its `near` node what is known at its `far` one; nodes of smaller
    `depth` are done first.
    """

    def __init__(self, near: Integers, far: Integers, depth: Integers) -> None:
        self.order = np.lexsort((near, depth))
        self.far = far[self.order]
        near = near[self.order]
        self.groups = np.flatnonzero(np.diff(near, prepend=-1))  # the first edge of each near node
        self.nodes = near[self.groups]
        self.sizes = np.diff(self.groups, append=len(near))
        edges = [
            0,
            *(np.flatnonzero(np.diff(depth[self.order])) + 1),
            len(near),
        ]  # where each depth begins
        groups = np.searchsorted(self.groups, edges).tolist()
        self.levels = [(first, last) for first, last in pairwise(groups) if first < last]

    def run(self, sums: Floats, log_edges: Floats) -> Floats:
        """Fill `sums`, which holds the log of 1 where paths begin, in place."""
        log_edges = log_edges[self.order]
        for first, last in self.levels:
            begin = self.groups[first]
            end = self.groups[last] if last < len(self.groups) else len(log_edges)
            values = sums[self.far[begin:end]] + log_edges[begin:end]
            groups = self.groups[first:last] - begin
            highest = np.maximum.reduceat(values, groups)
            shares = np.exp(values - np.repeat(highest, self.sizes[first:last]))
            sums[self.nodes[first:last]] = highest + np.log(np.add.reduceat(shares, groups))
        return sums


class Lattice:
    """All ways to cut words into pieces: a node before and after each byte, an edge wherever a
    piece fits.

    With `apart`, no word may be one piece (unless it is a single byte).
    """

    def __init__(self, words: list[bytes], pieces: list[bytes], apart: bool = False) -> None:
        ids = {piece: place for place, piece in enumerate(pieces)}
        edges = array("q")  # four numbers each, in eight bytes a number
        for number, word in enumerate(words):
            for start in range(len(word)):
                for end in range(start + 1, min(start + LONGEST, len(word)) + 1):
                    piece = ids.get(word[start:end])
                    if piece is not None and not (apart and 1 < len(word) == end - start):
                        edges.extend((number, start, end, piece))
        table = np.frombuffer(edges, dtype=np.int64).reshape(-1, 4)
        self.nodes = np.cumsum([0, *(len(word) + 1 for word in words)])
        self._use(*table.T)

    def _use(self, word: Integers, start: Integers, end: Integers, piece: Integers) -> None:
        self.word, self.start, self.end, self.piece = word, start, end, piece
        self._from, self._to = self.nodes[word] + start, self.nodes[word] + end
        self._forward = _Sweep(self._to, self._from, end)
        self._backward = _Sweep(self._from, self._to, -start)

    def keep(self, kept: Integers) -> None:
        """Leave only the pieces `kept`, which are numbered anew in that order; the 256 bytes have
        to be among them.
        """
        new = np.full(int(max(self.piece.max(initial=0), kept.max(initial=0))) + 1, -1)
        new[kept] = np.arange(len(kept))
        left = new[self.piece] >= 0
        self._use(self.word[left], self.start[left], self.end[left], new[self.piece[left]])

    def log_likelihoods(self, scores: Floats) -> tuple[Floats, Floats]:
        """The log of each word's probability, all its spellings summed, and the sums at every node
        on the way.
        """
        sums = np.full(self.nodes[-1], -np.inf)
        sums[self.nodes[:-1]] = 0.0
        sums = self._forward.run(sums, scores[self.piece])
        return sums[self.nodes[1:] - 1], sums

    def expected(self, counts: Floats, scores: Floats) -> tuple[Floats, float]:
        """How often each piece is used on average over all spellings, and the log-likelihood of all
        words.
        """
        words, before = self.log_likelihoods(scores)
        after = np.full(self.nodes[-1], -np.inf)
        after[self.nodes[1:] - 1] = 0.0
        after = self._backward.run(after, scores[self.piece])
        shares = np.exp(
            before[self._from] + scores[self.piece] + after[self._to] - words[self.word]
        )
        used = np.bincount(self.piece, weights=shares * counts[self.word], minlength=len(scores))
        return used.astype(np.float64), float(counts @ words)


def maximised(used: Floats) -> Floats:
    """The log probabilities that make these counts likeliest."""
    return np.log(np.maximum(used / used.sum(), TINY))


def candidates(
    words: list[bytes], counts: Floats, always: list[bytes], most: int
) -> tuple[list[bytes], Floats]:
    """What to begin with: the pieces `always`, then the strings that cover most bytes; and how
    often each occurs.
    """
    found: Counter[bytes] = Counter()
    for word, count in zip(words, counts.tolist(), strict=True):
        for start in range(len(word)):
            for end in range(start + 1, min(start + LONGEST, len(word)) + 1):
                found[word[start:end]] += count
    known = set(always)
    fresh = [
        piece
        for piece, count in found.items()
        if count >= FEWEST and len(piece) > 1 and piece not in known
    ]
    fresh.sort(key=lambda piece: (-found[piece] * len(piece), piece))
    pieces = [*always, *fresh[:most]]
    return pieces, np.array([max(found[piece], 1) for piece in pieces], dtype=np.float64)


def learned(counted: Counter[str], always: list[bytes], most: int) -> dict[bytes, float]:
    """Probabilities of the pieces `always` and of at most `most` others that make the counted words
    likeliest.

    The bytes, which `always` begins with, count as seen once even where they were not, so that any
    text can be spelled.
    """
    words = [word.encode("utf-8") for word in counted]
    counts = np.array(list(counted.values()), dtype=np.float64)
    pieces, used = candidates(
        words, counts, always, max(CANDIDATES * most, FEWEST_CANDIDATES) if most else 0
    )
    if words:
        lattice = Lattice(words, pieces)
        apart = Lattice(pieces[len(always) :], pieces, apart=True)
        rows = np.arange(len(pieces) - len(always))  # of the pieces that may go, in `apart`
        while True:
            finished = len(pieces) <= len(always) + most
            for _ in range(LAST_STEPS if finished else STEPS):
                used, _ = lattice.expected(counts, maximised(used))
            if finished:
                break
            # without a piece, each of its uses costs what sets it apart from all its spellings by
            # the other pieces
            scores = maximised(used)
            losses = used[len(always) :] * (
                scores[len(always) :] - apart.log_likelihoods(scores)[0][rows]
            )
            size = max(most, int(KEPT * len(losses)))
            left = np.sort(np.argsort(-losses, kind="stable")[:size])
            kept = np.concatenate([np.arange(len(always)), len(always) + left])
            lattice.keep(kept)
            apart.keep(kept)
            pieces, used, rows = [pieces[place] for place in kept], used[kept], rows[left]
    used[:256] = np.maximum(used[:256], 1.0)
    shares = np.maximum(used / used.sum(), TINY)
    return dict(zip(pieces, shares.tolist(), strict=True))
