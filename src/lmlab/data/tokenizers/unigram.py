"""Unigram language model: the pieces under which the text is likeliest, and each word's likeliest
spelling (Kudo 2018).

Pieces are byte strings within pre-tokens. A spelling has the probability of its pieces' product, a
word the sum over its spellings. Expectation maximisation fits the pieces' probabilities to all
distinct words at once; then the pieces whose loss costs the least likelihood are dropped, and so on
until few enough are left. The 256 bytes always stay, so nothing is unknown.
"""

from array import array
from collections import Counter
from collections.abc import Iterable, Iterator
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

LONGEST = 16
"""Bytes in a piece."""
FEWEST = 2
"""How often a candidate must occur."""
CANDIDATES, FEWEST_CANDIDATES = 8, 10_000
"""How many pieces to begin with: for each one to keep, and at least."""
KEPT = 0.75
"""Share of the pieces that a round of dropping keeps."""
STEPS, LAST_STEPS = 2, 4
"""Of expectation maximisation, before each round of dropping and at the end."""
TINY = 1e-300
"""Replaces a probability of zero, whose logarithm is infinite."""


class Options(SizedOptions):
    """How many pieces to keep."""


class Unigram(Tokenizer):
    """Ids 0 to 255 are the bytes; the pieces follow, likeliest first, with the BOS token among
    them.
    """

    def __init__(self, scores: dict[bytes, float], bos: int) -> None:
        if list(scores)[:256] != BYTES:
            raise ValueError("a vocabulary that does not begin with the bytes")
        self.bos = bos
        self.scores = scores
        self.token_bytes = with_bos(list(scores), bos)
        ids = {piece: i for i, piece in enumerate(self.token_bytes) if piece}
        self._spellings = Spellings(lambda word: [ids[piece] for piece in viterbi(word, scores)])

    @classmethod
    def fit(cls, options: Options, texts: Iterable[str]) -> Self:
        probabilities = learned(pretokens.count(texts), BYTES, options.vocabulary_size - 257)
        added = _likeliest_first(probabilities, 256)
        scores = {piece: float(np.log(probabilities[piece])) for piece in [*BYTES, *added]}
        return cls(scores, 256 + len(added))

    def grown(self, texts: Iterable[str], tokens: int) -> Self:
        """Add pieces of the texts to the old ones; a probability becomes the mean of the old one
        and that in the texts.
        """
        probabilities = learned(pretokens.count(texts), list(self.scores), tokens)
        added = _likeliest_first(probabilities, len(self.scores))
        if not added:
            return self
        old = {piece: np.exp(score) for piece, score in self.scores.items()}
        scores = {}
        for piece in [*old, *added]:
            mean = (old.get(piece, 0.0) + probabilities[piece]) / 2
            scores[piece] = float(np.log(mean))
        return type(self)(scores, self.bos)

    def encode(self, text: str) -> Ids:
        return self._spellings.encode(text)

    def decode(self, ids: Ids) -> str:
        return joined(self.token_bytes, ids)

    def state(self) -> dict[str, Any]:
        scores = {readable(piece): score for piece, score in self.scores.items()}
        return {"special": {"bos": self.bos}, "log_probabilities": scores}

    @classmethod
    def from_state(cls, state: dict[str, Any]) -> Self:
        log_probabilities = dict(state["log_probabilities"])
        scores = {from_readable(name): float(score) for name, score in log_probabilities.items()}
        return cls(scores, state["special"]["bos"])


def _likeliest_first(probabilities: dict[bytes, float], known: int) -> list[bytes]:
    """The pieces after the first `known`, the most probable first."""
    added = list(probabilities)[known:]
    return sorted(added, key=lambda piece: (-probabilities[piece], piece))


def viterbi(word: bytes, scores: dict[bytes, float]) -> list[bytes]:
    """The pieces that spell the word with the highest sum of log probabilities."""
    best = [0.0] + [-np.inf] * len(word)  # log probability of the best spelling of word[:end]
    begins = [0] * (len(word) + 1)  # where the last piece of that spelling begins
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
    """The forward or backward recursion over the lattices of all words at once.

    sum(node) = logsumexp over its edges of (sum(far end of the edge) + log P(piece of the edge)).
    Nodes are computed in order of `depth`, all of the same depth in one vectorised step, so there
    are as many steps as the longest word has bytes. `near`, `far` and `depth` (of the near node)
    have shape (edges,).
    """

    def __init__(self, near: Integers, far: Integers, depth: Integers) -> None:
        self.order = np.lexsort((near, depth))
        self.far = far[self.order]
        near = near[self.order]
        self.groups = np.flatnonzero(np.diff(near, prepend=-1))  # the first edge of each near node
        self.nodes = near[self.groups]
        self.sizes = np.diff(self.groups, append=len(near))
        depth_changes = np.flatnonzero(np.diff(depth[self.order])) + 1
        first_edges = [0, *depth_changes, len(near)]  # of each depth
        first_groups = np.searchsorted(self.groups, first_edges).tolist()
        self.levels = [(first, last) for first, last in pairwise(first_groups) if first < last]

    def run(self, sums: Floats, log_edges: Floats) -> Floats:
        """Fill `sums` in place, by node; it must be 0 where paths begin and -inf elsewhere."""
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
    """All spellings of some words: a node before and after each byte, an edge wherever a piece
    fits.

    With `apart`, no word is spelled as a single piece, unless it is one byte.
    """

    def __init__(self, words: list[bytes], pieces: list[bytes], apart: bool = False) -> None:
        ids = {piece: i for i, piece in enumerate(pieces)}
        edges = array("q")  # four 64-bit integers per edge
        for number, word in enumerate(words):
            for start, end in _substrings(word):
                piece = ids.get(word[start:end])
                is_whole_word = 1 < len(word) == end - start
                if piece is not None and not (apart and is_whole_word):
                    edges.extend((number, start, end, piece))
        table = np.frombuffer(edges, dtype=np.int64).reshape(-1, 4)
        self.nodes = np.cumsum([0, *(len(word) + 1 for word in words)])
        """The first node of each word."""
        self._set_edges(*table.T)

    def _set_edges(self, word: Integers, start: Integers, end: Integers, piece: Integers) -> None:
        self.word, self.start, self.end, self.piece = word, start, end, piece
        self._from, self._to = self.nodes[word] + start, self.nodes[word] + end
        self._forward = _Sweep(self._to, self._from, end)
        self._backward = _Sweep(self._from, self._to, -start)

    def keep(self, kept: Integers) -> None:
        """Remove all pieces but `kept`, which are renumbered in that order and must include the
        bytes.
        """
        largest = max(self.piece.max(initial=0), kept.max(initial=0))
        new = np.full(int(largest) + 1, -1)
        new[kept] = np.arange(len(kept))
        stays = new[self.piece] >= 0
        self._set_edges(
            self.word[stays], self.start[stays], self.end[stays], new[self.piece[stays]]
        )

    def log_likelihoods(self, scores: Floats) -> tuple[Floats, Floats]:
        """The log probability of each word, summed over its spellings, and the forward log sums at
        the nodes.
        """
        sums = np.full(self.nodes[-1], -np.inf)
        sums[self.nodes[:-1]] = 0.0
        sums = self._forward.run(sums, scores[self.piece])
        return sums[self.nodes[1:] - 1], sums

    def expected(self, counts: Floats, scores: Floats) -> tuple[Floats, float]:
        """Each piece's expected number of uses, shape (pieces,), and the words' log likelihood.

        `counts` is how often each word occurs, `scores` the log probability of each piece.
        """
        words, before = self.log_likelihoods(scores)
        after = np.full(self.nodes[-1], -np.inf)
        after[self.nodes[1:] - 1] = 0.0
        after = self._backward.run(after, scores[self.piece])
        log_paths = before[self._from] + scores[self.piece] + after[self._to]
        posterior = np.exp(log_paths - words[self.word])  # P(edge | word)
        uses = np.bincount(self.piece, weights=posterior * counts[self.word], minlength=len(scores))
        return uses.astype(np.float64), float(counts @ words)


def _substrings(word: bytes) -> Iterator[tuple[int, int]]:
    """The start and end of every substring of at most LONGEST bytes."""
    for start in range(len(word)):
        for end in range(start + 1, min(start + LONGEST, len(word)) + 1):
            yield start, end


def maximised(uses: Floats) -> Floats:
    """The log probabilities under which these numbers of uses are likeliest."""
    return np.log(np.maximum(uses / uses.sum(), TINY))


def candidates(
    words: list[bytes], counts: Floats, always: list[bytes], most: int
) -> tuple[list[bytes], Floats]:
    """The pieces to begin with, and how often each occurs: `always`, then the strings that cover
    most bytes.
    """
    occurrences: Counter[bytes] = Counter()
    for word, count in zip(words, counts.tolist(), strict=True):
        for start, end in _substrings(word):
            occurrences[word[start:end]] += count
    known = set(always)
    frequent = [piece for piece, count in occurrences.items() if count >= FEWEST]
    others = [piece for piece in frequent if len(piece) > 1 and piece not in known]
    others.sort(key=lambda piece: (-occurrences[piece] * len(piece), piece))
    pieces = [*always, *others[:most]]
    return pieces, np.array([max(occurrences[piece], 1) for piece in pieces], dtype=np.float64)


def learned(counted: Counter[str], always: list[bytes], most: int) -> dict[bytes, float]:
    """The probabilities of the pieces `always` and at most `most` others under which the words are
    likeliest.

    `always` begins with the bytes. These count as used at least once, so that any text can be
    spelled.
    """
    words = [word.encode("utf-8") for word in counted]
    counts = np.array(list(counted.values()), dtype=np.float64)
    size = max(CANDIDATES * most, FEWEST_CANDIDATES) if most else 0
    pieces, uses = candidates(words, counts, always, size)
    if words:
        pieces, uses = _pruned(words, counts, pieces, uses, len(always), most)
    uses[:256] = np.maximum(uses[:256], 1.0)
    probabilities = np.maximum(uses / uses.sum(), TINY)
    return dict(zip(pieces, probabilities.tolist(), strict=True))


def _pruned(
    words: list[bytes],
    counts: Floats,
    pieces: list[bytes],
    uses: Floats,
    fixed: int,
    most: int,
) -> tuple[list[bytes], Floats]:
    """The first `fixed` pieces and the `most` most useful others, with their expected numbers of
    uses.
    """
    lattice = Lattice(words, pieces)
    alternatives = Lattice(pieces[fixed:], pieces, apart=True)
    rows = np.arange(len(pieces) - fixed)  # of the droppable pieces as words in `alternatives`
    while len(pieces) > fixed + most:
        for _ in range(STEPS):
            uses, _ = lattice.expected(counts, maximised(uses))
        # dropping a piece costs each of its uses the difference in log probability between it and
        # all its spellings in other pieces
        scores = maximised(uses)
        alternative_scores = alternatives.log_likelihoods(scores)[0][rows]
        losses = uses[fixed:] * (scores[fixed:] - alternative_scores)
        size = max(most, int(KEPT * len(losses)))
        best = np.sort(np.argsort(-losses, kind="stable")[:size])
        kept = np.concatenate([np.arange(fixed), fixed + best])
        lattice.keep(kept)
        alternatives.keep(kept)
        pieces = [pieces[i] for i in kept]
        uses, rows = uses[kept], rows[best]
    for _ in range(LAST_STEPS):
        uses, _ = lattice.expected(counts, maximised(uses))
    return pieces, uses
