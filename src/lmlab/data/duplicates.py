"""Which documents of a corpus say the same as an earlier one.

Equal documents have equal text, told by 128 bits of a hash. Nearly equal ones share most of their
runs of RUN_WORDS words: the Jaccard similarity |A n B| / |A u B| of the sets A and B of two
documents' runs is estimated by MinHash (Broder 1997) as the share of NUMBERS independent minima
that agree, with a standard deviation of at most 0.044. Only documents are compared that agree in
all minima of a band, ROWS of them one after the other (locality-sensitive hashing; Indyk & Motwani
1998): two of similarity s are compared with probability 1 - (1 - s^ROWS)^BANDS, which is 0.998 for
0.8 and 0.08 for 0.4.

Signatures are on disk and one band at a time is in memory, so a document takes some 60 bytes of it.
"""

from collections.abc import Iterable, Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict

from lmlab.core.errors import UserError

Duplicates = Literal["keep", "equal", "near"]
NUMBERS, ROWS = 128, 6
BANDS = NUMBERS // ROWS
NONE = 2**32 - 1
"""The minimum of no runs."""
RUN_WORDS = 5
SEED = 1
FACTOR = np.uint64(0x9E3779B97F4A7C15)
"""An odd number whose bits look random (Knuth 6.4), to hash a band's minima."""


def check_can_find(duplicates: Duplicates) -> None:
    """Raise UserError where the library that near duplicates need is missing."""
    if duplicates == "near" and find_spec("rensa") is None:
        raise UserError(
            "params.yaml: download.duplicates: near needs the package rensa: pip install"
            " 'lmlab[near]' (in a copy of the project: pip install -e '.[near]'), or choose equal"
        )


class SignatureState(BaseModel):
    """Where the signature of a document is whose end has not been reached."""

    model_config = ConfigDict(extra="forbid")

    minima: list[int]
    has_run: bool
    rest: list[str]
    """The last words, of which no run has begun."""


class Signatures:
    """The MinHash signatures of documents, in the order in which they are added."""

    def __init__(self) -> None:
        self._ended: list[NDArray[np.uint32]] = []
        self._begin()

    def _begin(self) -> None:
        import rensa

        self._minima: Any = rensa.RMinHash(num_perm=NUMBERS, seed=SEED)
        self._earlier = np.full(NUMBERS, NONE, np.uint32)
        self._has_run = False
        self._rest: list[str] = []

    def state(self) -> SignatureState:
        """Where the document is that has been begun, to go on from."""
        minima = self._all_minima().tolist()
        return SignatureState(minima=minima, has_run=self._has_run, rest=self._rest)

    def go_on_from(self, state: SignatureState) -> None:
        """The document has begun as `state` says."""
        self._earlier = np.array(state.minima, np.uint32)
        self._has_run, self._rest = state.has_run, state.rest

    def _all_minima(self) -> NDArray[np.uint32]:
        return np.minimum(np.array(self._minima.digest(), np.uint32), self._earlier)

    def add(self, text: str) -> None:
        """More of a document's text, of which no word goes on in what follows."""
        words = [*self._rest, *text.split()]
        firsts = range(len(words) - RUN_WORDS + 1)
        self._minima.update([" ".join(words[first : first + RUN_WORDS]) for first in firsts])
        self._has_run |= len(firsts) > 0
        self._rest = words[-RUN_WORDS + 1 :]

    def end(self) -> None:
        """The document ends. One that is shorter than a run is a run itself."""
        if not self._has_run:
            self._minima.update([" ".join(self._rest)])
        self._ended.append(self._all_minima())
        self._begin()

    def taken(self) -> NDArray[np.uint32]:
        """Those of the documents that have ended since they were last taken, shape (documents,
        NUMBERS).
        """
        ended, self._ended = self._ended, []
        return np.array(ended, np.uint32).reshape(-1, NUMBERS)


def on_disk(path: Path, signatures: Iterable[NDArray[np.uint32]]) -> NDArray[np.uint32]:
    """One after the other in a file, shape (documents, NUMBERS): read as they are asked for."""
    with open(path, "wb") as file:
        for some in signatures:
            file.write(some.tobytes())
    if not path.stat().st_size:
        return np.zeros((0, NUMBERS), np.uint32)
    return np.memmap(path, np.uint32, "r").reshape(-1, NUMBERS)


def first_of_equal(hashes_N2: NDArray[np.uint64]) -> NDArray[np.bool_]:
    """Of each document, whether no earlier one has its hash (two words of 64 bits)."""
    _, first = np.unique(hashes_N2, axis=0, return_index=True)
    is_first = np.zeros(len(hashes_N2), np.bool_)
    is_first[first] = True
    return is_first


def first_of_near(
    signatures: NDArray[np.uint32], similarity: float, among: NDArray[np.bool_]
) -> NDArray[np.bool_]:
    """Of each document `among` those that count, whether it is the first of those like it.

    Two of at least this similarity are alike, and so are two that are like a third one.
    """
    cluster = np.arange(len(signatures))

    def root(document: int) -> int:
        while cluster[document] != document:
            cluster[document] = cluster[cluster[document]]
            document = int(cluster[document])
        return document

    counted = np.flatnonzero(among)
    for band in range(BANDS):
        minima = slice(band * ROWS, (band + 1) * ROWS)
        for earliest, other in _agreeing(signatures, minima, counted):
            one, two = root(earliest), root(other)
            if one == two:
                continue
            agree = float((signatures[earliest] == signatures[other]).mean())
            if agree >= similarity:
                cluster[max(one, two)] = min(one, two)
    is_first: NDArray[np.bool_] = among & (cluster == np.arange(len(cluster)))
    return is_first


def _agreeing(
    signatures: NDArray[np.uint32], band: slice, counted: NDArray[np.int64]
) -> Iterator[tuple[int, int]]:
    """Pairs of documents whose minima in a band agree: the earliest of each, and each other one."""
    keys = np.zeros(len(signatures), np.uint64)
    with np.errstate(over="ignore"):
        for number in range(band.start, band.stop):
            keys = (keys ^ signatures[:, number]) * FACTOR
            keys ^= keys >> np.uint64(29)
    keys = keys[counted]
    order = np.argsort(keys, kind="stable")
    begins = np.flatnonzero(np.diff(keys[order], prepend=keys[order][:1] ^ np.uint64(1)) != 0)
    ends = [*begins[1:], len(order)]
    for begin, end in zip(begins, ends, strict=True):
        for place in range(begin + 1, end):
            yield int(counted[order[begin]]), int(counted[order[place]])
