"""What the splits of a corpus share: equal documents, and long runs of text found in two splits
verbatim.

A run is RUN or more consecutive characters of one document that occur in a document of another
split. RUN is about the length of the 13-grams by which Brown et al. (2020) searched their training
text for test sets.

The held-out splits are indexed by a hash of the RUN characters from each position on; then the
train split is read once and every position is looked up. Memory is bounded: of a held-out split
larger than MOST_CHECKED characters, only an evenly spread sample of stretches of STRETCH characters
is indexed, and the result says how many characters that is.
"""

import hashlib
from array import array
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from lmlab.core.progress import ProgressBar
from lmlab.data.corpus_manifest import Copied, Documents, EqualDocuments, Verbatim
from lmlab.data.documents import SPLITS, read_rows

RUN = 64
"""A power of two, as `window_hashes` requires."""
MOST_CHECKED = 1 << 21
STRETCH = 1 << 12
AT_ONCE = 1 << 16
"""How many positions are hashed and looked up at a time: few enough for a processor's cache."""
BITS_A_HASH = 16
PAIRS = (("validation", "train"), ("test", "train"), ("test", "validation"))
HELD_OUT = ("validation", "test")
FIRST_BORDER = 0x110000
"""The first number beyond the code points. Borders between documents are numbered from here on: no
two are equal, so no run crosses one.
"""
FIRST_TRAIN_BORDER = 1 << 40
"""Added to the borders of train, so that they differ from those of the held-out splits."""
_FACTORS = [
    int.from_bytes(hashlib.blake2b(bytes([number]), digest_size=8).digest(), "big") | 1
    for number in range(8)
]

Numbers = NDArray[np.uint64]


class Part(NamedTuple):
    """A row of a corpus's file: some of a document's text; part 0 begins a document."""

    document: int
    part: int
    text: str


def overlap(folder: Path, characters: dict[str, int]) -> tuple[EqualDocuments, Verbatim]:
    """What the splits in a corpus's folder share, given how many characters each split has."""
    documents = {split: _DocumentHashes() for split in SPLITS}
    indices = {}
    for split in HELD_OUT:
        every = -(-characters[split] // MOST_CHECKED)
        parts = documents[split].recorded(_parts(folder, split))
        indices[split] = _Index(_sampled(parts, every))
    search = Search([index.hashes for index in indices.values()])
    with ProgressBar("download: comparing splits", characters["train"], "characters") as bar:
        parts = documents["train"].recorded(_parts(folder, "train"), bar.advance)
        for numbers in _stream(parts, FIRST_TRAIN_BORDER):
            search.look_up(window_hashes(numbers))
    verbatim = Verbatim(
        run_characters=RUN,
        validation=indices["validation"].copied(search),
        test=indices["test"].copied(search),
    )
    return _equal_documents(documents), verbatim


def window_hashes(numbers: Numbers) -> Numbers:
    """The hash of the RUN numbers from each position on, shape (len(numbers) - RUN + 1,).

    A polynomial hash by doubling: h(ab) = factor * h(a) + h(b) modulo 2^64 for halves a and b of
    equal length. The numbers are scrambled first, since small ones would fill the high bits
    unevenly.
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
    """Finds which of a fixed set of hashes occur in a stream of any length."""

    def __init__(self, hashes: list[Numbers]) -> None:
        ordered = np.sort(np.concatenate(hashes))
        is_repeat = ordered[1:] == ordered[:-1]
        self.missing: Numbers = np.delete(ordered, np.flatnonzero(is_repeat))
        """The hashes that have not occurred yet, sorted."""
        self._index()

    def look_up(self, hashes: Numbers) -> None:
        """Record which of the missing hashes are among the next of the stream."""
        if not len(self.missing):
            return
        for bloom_filter in self._filters:
            hashes = hashes[bloom_filter.may_hold(hashes)]
        places = self._places(hashes)
        hits = places[self.missing[places] == hashes]
        self._is_found[hits] = True
        self._hits += len(hits)
        if self._hits * 8 > len(self.missing):  # else repetitive text would hit again and again
            self._drop_found()

    def found(self, hashes: Numbers) -> NDArray[np.bool_]:
        """For each of some hashes of the set, whether it has occurred; shape (len(hashes),)."""
        self._drop_found()
        is_found = np.ones(len(hashes), dtype=np.bool_)
        if len(self.missing):
            order = np.argsort(hashes)  # look-ups in order touch neighbouring memory
            ordered = hashes[order]
            is_found[order] = self.missing[self._places(ordered)] != ordered
        return is_found

    def _places(self, hashes: Numbers) -> NDArray[np.intp]:
        """The place in `missing` where each hash is, if it is there."""
        return np.minimum(np.searchsorted(self.missing, hashes), len(self.missing) - 1)

    def _drop_found(self) -> None:
        if self._hits:
            self.missing = self.missing[~self._is_found]
            self._index()

    def _index(self) -> None:
        self._filters = [_BloomFilter(self.missing, skipped) for skipped in (0, 24)]
        self._is_found = np.zeros(len(self.missing), dtype=np.bool_)
        self._hits = 0


class _BloomFilter:
    """A table of bits indexed by some bits of a hash, set for those of the hashes (Bloom 1970).

    The bits used follow the first `skipped` ones. Nearly every hash outside the set finds its bit
    unset, and the table is small enough for a processor's cache.
    """

    def __init__(self, hashes: Numbers, skipped: int) -> None:
        used = (BITS_A_HASH * len(hashes) | 63).bit_length()
        self._left, self._right = np.uint64(skipped), np.uint64(64 - used)
        table = np.zeros(1 << used, dtype=np.bool_)
        table[self._places(hashes)] = True
        self._packed = np.packbits(table, bitorder="little")

    def may_hold(self, hashes: Numbers) -> NDArray[np.bool_]:
        """For each hash, False where it is certainly not in the set; shape (len(hashes),)."""
        places = self._places(hashes)
        packed = self._packed[places >> np.uint64(3)]
        bit = (places & np.uint64(7)).astype(np.uint8)
        return (packed >> bit) & np.uint8(1) != 0

    def _places(self, hashes: Numbers) -> Numbers:
        return (hashes << self._left) >> self._right


class _Index:
    """The hashes of a held-out split, or of a sample of it, in the order of its text."""

    def __init__(self, parts: Iterable[Part]) -> None:
        self.characters = 0
        """Those of the text, without borders."""
        hashes = [np.zeros(0, dtype=np.uint64)]
        hashes += map(window_hashes, _stream(self._counted(parts), border=0))
        self.hashes: Numbers = np.concatenate(hashes)

    def copied(self, search: Search) -> Copied:
        """How many characters lie in a window that the search found."""
        starts = np.flatnonzero(search.found(self.hashes))
        changes = np.zeros(len(self.hashes) + RUN, dtype=np.int64)  # in the number of open windows
        changes[starts] += 1
        changes[starts + RUN] -= 1
        is_covered = changes.cumsum() > 0
        return Copied(characters=int(is_covered.sum()), checked=self.characters)

    def _counted(self, parts: Iterable[Part]) -> Iterator[Part]:
        for part in parts:
            self.characters += len(part.text)
            yield part


class _DocumentHashes:
    """The length and hash of each document of a split: 16 bytes per document."""

    def __init__(self) -> None:
        self._lengths = array("q")
        self._hashes = array("Q")

    def recorded(
        self, parts: Iterable[Part], advance: Callable[[int], None] | None = None
    ) -> Iterator[Part]:
        """Yield the same parts and record their documents; `advance` gets each part's length."""
        digest = hashlib.blake2b(digest_size=8)
        length = 0
        for part in parts:
            if part.part == 0 and length:
                self._add(digest.digest(), length)
                digest = hashlib.blake2b(digest_size=8)
                length = 0
            digest.update(part.text.encode("utf-8"))
            length += len(part.text)
            yield part
            if advance:
                advance(len(part.text))
        if length:
            self._add(digest.digest(), length)

    def repeated(self) -> Documents:
        """Those equal to an earlier one."""
        _, first = np.unique(self.hashes, return_index=True)
        is_repeat = np.ones(len(self.hashes), dtype=np.bool_)
        is_repeat[first] = False
        return self._count(is_repeat)

    def also_in(self, others: "_DocumentHashes") -> Documents:
        """Those equal to one of the others."""
        return self._count(np.isin(self.hashes, others.hashes))

    @property
    def hashes(self) -> Numbers:
        return np.array(self._hashes, dtype=np.uint64)

    def _count(self, selected: NDArray[np.bool_]) -> Documents:
        lengths = np.array(self._lengths, dtype=np.int64)[selected]
        return Documents(documents=len(lengths), characters=int(lengths.sum()))

    def _add(self, digest: bytes, length: int) -> None:
        self._hashes.append(int.from_bytes(digest, "big"))
        self._lengths.append(length)


def _equal_documents(documents: dict[str, _DocumentHashes]) -> EqualDocuments:
    within = {split: documents[split].repeated() for split in SPLITS}
    across = {}
    for first, second in PAIRS:
        across[f"{first} in {second}"] = documents[first].also_in(documents[second])
    return EqualDocuments(within=within, across=across)


def _parts(folder: Path, split: str) -> Iterator[Part]:
    for row in read_rows(folder / f"{split}.parquet", list(Part._fields)):
        yield Part(*row)


def _sampled(parts: Iterable[Part], every: int) -> Iterator[Part]:
    """One in `every` stretches of the text, each as a document; where `every` is 1 the parts
    themselves.
    """
    if every <= 1:
        yield from parts
        return
    begin = 0
    for part in parts:
        end = begin + len(part.text)
        for stretch in range(begin // STRETCH, -(-end // STRETCH)):
            if stretch % every == 0:
                first = max(stretch * STRETCH - begin, 0)
                last = (stretch + 1) * STRETCH - begin
                yield Part(part.document, 0, part.text[first:last])
        begin = end


def _stream(parts: Iterable[Part], border: int) -> Iterator[Numbers]:
    """The text as code points, with a border before each document, in arrays of a bounded size.

    Consecutive arrays share RUN - 1 numbers, so that together they have every window of the text
    once.
    """
    pending = [np.zeros(0, dtype=np.uint64)]
    size = 0
    for _, part, text in parts:
        if part == 0:
            pending.append(np.array([FIRST_BORDER + border], dtype=np.uint64))
            border += 1
        code_points = np.frombuffer(text.encode("utf-32-le"), dtype="<u4")
        pending.append(code_points.astype(np.uint64))
        size += len(text)
        if size >= AT_ONCE:
            joined = np.concatenate(pending)
            yield from _in_pieces(joined)
            pending = [joined[-(RUN - 1) :]]
            size = 0
    yield from _in_pieces(np.concatenate(pending))


def _in_pieces(numbers: Numbers) -> Iterator[Numbers]:
    """The numbers in arrays of AT_ONCE windows each."""
    for start in range(0, max(len(numbers) - RUN + 1, 0), AT_ONCE):
        yield numbers[start : start + AT_ONCE + RUN - 1]
