"""What the splits of a corpus have in common: equal documents, and long runs of text that stand in
two splits verbatim.

A run is RUN characters or more of one document that stand in some document of another split just
so. RUN is about the 13 words by which Brown et al. (2020) looked for test sets in their training
text.

The held-out splits are indexed by a hash of the RUN characters from each position on; then the
train split is read once and each of its positions looked up. Memory is bounded: of a held-out split
of more than MOST_CHECKED characters an evenly spread sample is indexed, in stretches of STRETCH
characters each, and the result says how many characters those are.
"""

import hashlib
from array import array
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from lmlab.core.progress import ProgressBar
from lmlab.data.documents import SPLITS, read_rows

RUN = 64
"""A power of two, as `window_hashes` needs it."""
MOST_CHECKED = 1 << 21
STRETCH = 1 << 12
AT_ONCE = 1 << 16
BITS_A_HASH = 16
PAIRS = (("validation", "train"), ("test", "train"), ("test", "validation"))
HELD_OUT = ("validation", "test")
BEHIND_CHARACTERS = 0x110000
"""The first number that is no code point. Borders between documents are numbered from here on, so
that no two are equal and no run crosses one.
"""
BORDERS_OF_TRAIN = 1 << 40
_FACTORS = [
    int.from_bytes(hashlib.blake2b(bytes([number]), digest_size=8).digest(), "big") | 1
    for number in range(8)
]

Numbers = NDArray[np.uint64]


class Part(NamedTuple):
    """Some of a document's text, as the files of a corpus hold it: part 0 begins a document."""

    document: int
    part: int
    text: str


def overlap(folder: Path, characters: dict[str, int]) -> dict[str, Any]:
    """What the splits in a corpus's folder have in common; `characters` says how many each split
    has.

    `equal_documents`: of each split how many documents, with how many characters, repeat an earlier
    one of the same split (`within`), and how many stand in another split too (`across`, e.g.
    `validation in train`). `verbatim`: for each held-out split, how many of its `checked`
    characters lie in a run of at least `run_characters` that stands in train.
    """
    documents = {split: _Documents() for split in SPLITS}
    indexed = {}
    for split in HELD_OUT:
        every = -(-characters[split] // MOST_CHECKED)
        indexed[split] = _Indexed(_sampled(documents[split].noted(_parts(folder, split)), every))
    search = Search([index.hashes for index in indexed.values()])
    with ProgressBar("download: comparing splits", characters["train"], "characters") as bar:
        train = documents["train"].noted(_parts(folder, "train"), bar.advance)
        for numbers in _stream(train, BORDERS_OF_TRAIN):
            search.look_up(window_hashes(numbers))
    verbatim = {
        split: {"characters": index.covered(search), "checked": index.characters}
        for split, index in indexed.items()
    }
    return {"equal_documents": _equal(documents), "verbatim": {"run_characters": RUN, **verbatim}}


def window_hashes(numbers: Numbers) -> Numbers:
    """A hash of the RUN numbers from each position on, shape (len(numbers) - RUN + 1,).

    Polynomials by doubling: the hash of twice as many numbers is that of the first half times a
    factor plus that of the second, modulo 2^64. Numbers are scrambled first, since such a hash of
    small ones would fill the high bits unevenly.
    """
    hashes = numbers * np.uint64(_FACTORS[0])
    hashes ^= hashes >> np.uint64(29)
    width = 1
    while width < RUN:
        factor = np.uint64(_FACTORS[width.bit_length()])
        hashes = hashes[:-width] * factor + hashes[width:]
        width *= 2
    return hashes


class Search:
    """Which of some hashes occur among others, of which any number may pass by."""

    def __init__(self, hashes: list[Numbers]) -> None:
        ordered = np.sort(np.concatenate(hashes))
        again = ordered[1:] == ordered[:-1]
        self.missing: Numbers = np.delete(ordered, np.flatnonzero(again))
        """Those that have not been met yet, in order."""
        self._index()

    def look_up(self, hashes: Numbers) -> None:
        """Note which of the hashes looked for are among these."""
        if not len(self.missing):
            return
        for bits in self._filters:
            hashes = hashes[bits.may_hold(hashes)]
        places = self._places(hashes)
        met = places[self.missing[places] == hashes]
        self._met[met] = True
        self._hits += len(met)
        if self._hits * 8 > len(
            self.missing
        ):  # or text that repeats itself would be looked up again and again
            self._forget_those_met()

    def found(self, hashes: Numbers) -> NDArray[np.bool_]:
        """For each of some hashes that were looked for, whether it was met."""
        self._forget_those_met()
        met = np.ones(len(hashes), dtype=np.bool_)
        if len(self.missing):
            order = np.argsort(
                hashes
            )  # what is looked up in order is near what was looked up before it
            met[order] = self.missing[self._places(hashes[order])] != hashes[order]
        return met

    def _places(self, hashes: Numbers) -> NDArray[np.intp]:
        """Where among the missing each of the hashes would have to be."""
        return np.minimum(np.searchsorted(self.missing, hashes), len(self.missing) - 1)

    def _forget_those_met(self) -> None:
        if self._hits:
            self.missing = self.missing[~self._met]
            self._index()

    def _index(self) -> None:
        self._filters = [_Bits(self.missing, skipped) for skipped in (0, 24)]
        self._met = np.zeros(len(self.missing), dtype=np.bool_)
        self._hits = 0


class _Bits:
    """A table with a bit for some of the bits of a hash, set where one of the hashes has these
    (Bloom 1970).

    Nearly all hashes that are not looked for find no bit set, in memory small enough for a
    processor's cache.
    """

    def __init__(self, hashes: Numbers, skipped: int) -> None:
        bits = (BITS_A_HASH * len(hashes) | 63).bit_length()
        self._left, self._right = np.uint64(skipped), np.uint64(64 - bits)
        bit_set = np.zeros(1 << bits, dtype=np.bool_)
        bit_set[self._place(hashes)] = True
        self._packed = np.packbits(bit_set, bitorder="little")

    def may_hold(self, hashes: Numbers) -> NDArray[np.bool_]:
        """For each hash False where it is certainly none of those in the table."""
        places = self._place(hashes)
        bytes_there = self._packed[places >> np.uint64(3)]
        return (bytes_there >> (places & np.uint64(7)).astype(np.uint8)) & np.uint8(1) != 0

    def _place(self, hashes: Numbers) -> Numbers:
        return (hashes << self._left) >> self._right


class _Indexed:
    """The hashes of a held-out split, or of a sample of it, in the order of its text."""

    def __init__(self, parts: Iterable[Part]) -> None:
        self.characters = 0
        """How many there are, borders not counted."""
        self.hashes: Numbers = np.concatenate(
            [
                np.zeros(0, dtype=np.uint64),
                *map(window_hashes, _stream(self._counted(parts), border=0)),
            ]
        )

    def covered(self, search: Search) -> int:
        """How many characters lie in a window that the search found."""
        starts = np.flatnonzero(search.found(self.hashes))
        steps = np.zeros(len(self.hashes) + RUN, dtype=np.int64)
        steps[starts] += 1
        steps[starts + RUN] -= 1
        return int((steps.cumsum() > 0).sum())

    def _counted(self, parts: Iterable[Part]) -> Iterator[Part]:
        for part in parts:
            self.characters += len(part.text)
            yield part


class _Documents:
    """Length and hash of each document of a split, noted as its parts pass by: 16 bytes a
    document.
    """

    def __init__(self) -> None:
        self._lengths = array("q")
        self._hashes = array("Q")

    def noted(
        self, parts: Iterable[Part], tell: Callable[[int], None] = lambda characters: None
    ) -> Iterator[Part]:
        """The same parts; `tell` is called with the characters of each behind it."""
        digest, length = hashlib.blake2b(digest_size=8), 0
        for part in parts:
            if part.part == 0 and length:
                self._add(digest.digest(), length)
                digest, length = hashlib.blake2b(digest_size=8), 0
            digest.update(part.text.encode("utf-8"))
            length += len(part.text)
            yield part
            tell(len(part.text))
        if length:
            self._add(digest.digest(), length)

    def repeated(self) -> dict[str, int]:
        """Those that are like an earlier one."""
        _, first = np.unique(self.hashes, return_index=True)
        again = np.ones(len(self.hashes), dtype=np.bool_)
        again[first] = False
        return self._counts(again)

    def also_in(self, other: "_Documents") -> dict[str, int]:
        """Those that are like any of the other's."""
        return self._counts(np.isin(self.hashes, other.hashes))

    @property
    def hashes(self) -> Numbers:
        return np.array(self._hashes, dtype=np.uint64)

    def _counts(self, which: NDArray[np.bool_]) -> dict[str, int]:
        lengths = np.array(self._lengths, dtype=np.int64)
        return {"documents": int(which.sum()), "characters": int(lengths[which].sum())}

    def _add(self, digest: bytes, length: int) -> None:
        self._hashes.append(int.from_bytes(digest, "big"))
        self._lengths.append(length)


def _equal(documents: dict[str, _Documents]) -> dict[str, Any]:
    across = {
        f"{split} in {other}": documents[split].also_in(documents[other]) for split, other in PAIRS
    }
    return {"within": {split: documents[split].repeated() for split in SPLITS}, "across": across}


def _parts(folder: Path, split: str) -> Iterator[Part]:
    for row in read_rows(folder / f"{split}.parquet", list(Part._fields)):
        yield Part(*row)


def _sampled(parts: Iterable[Part], every: int) -> Iterator[Part]:
    """One in `every` stretches of the text, each as a document of its own; all parts as they are
    where that is every one.
    """
    begin = 0
    for part in parts:
        if every <= 1:
            yield part
            continue
        end = begin + len(part.text)
        for stretch in range(begin // STRETCH, -(-end // STRETCH)):
            if stretch % every == 0:
                start = max(stretch * STRETCH - begin, 0)
                yield Part(part.document, 0, part.text[start : (stretch + 1) * STRETCH - begin])
        begin = end


def _stream(parts: Iterable[Part], border: int) -> Iterator[Numbers]:
    """The text in code points with a border before each document, in arrays that share RUN - 1
    numbers with the next.

    So the windows of all arrays, one array after another, are the windows of the whole.
    """
    held = [np.zeros(0, dtype=np.uint64)]
    size = 0
    for _, part, text in parts:
        if part == 0:
            held.append(np.array([BEHIND_CHARACTERS + border], dtype=np.uint64))
            border += 1
        held.append(np.frombuffer(text.encode("utf-32-le"), dtype="<u4").astype(np.uint64))
        size += len(text)
        if size >= AT_ONCE:
            joined = np.concatenate(held)
            yield from _in_pieces(joined)
            held, size = [joined[-(RUN - 1) :]], 0
    yield from _in_pieces(np.concatenate(held))


def _in_pieces(numbers: Numbers) -> Iterator[Numbers]:
    """Small enough for a processor's cache."""
    for start in range(0, max(len(numbers) - RUN + 1, 0), AT_ONCE):
        yield numbers[start : start + AT_ONCE + RUN - 1]
