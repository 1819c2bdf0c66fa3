"""Divide documents into train, validation and test: which text goes where, and writing it."""

import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np

from lmlab.core.errors import UserError
from lmlab.data import cleaned
from lmlab.data.cleaned import Measured
from lmlab.data.corpus_manifest import SplitSize
from lmlab.data.documents import SPLITS, RowWriter

Row = tuple[str, int, int, str, str]
"""Split, document, part, name, text."""


class Shares(NamedTuple):
    """Of the text that is held out."""

    validation: float
    test: float


def by_tail(rows: Iterable[cleaned.Row], characters: int, shares: Shares) -> Iterator[Row]:
    """Hold out the ends of the text: its first characters are test, its last validation.

    So validation continues train, as in most published splits of a single text, whatever the size
    of the test split.
    """
    splits = ["test", "train", "validation"]
    ends = [int(characters * shares.test), int(characters * (1 - shares.validation)), characters]
    position = 0
    current, first_part = (-1, ""), 0
    for document, part, name, text in rows:
        while text:
            while position >= ends[0]:
                ends.pop(0)
                splits.pop(0)
            split, room = splits[0], ends[0] - position
            piece, text = text[:room], text[room:]
            if (document, split) != current:
                # the rest of a document cut by a boundary begins a new document in the next split
                current, first_part = (document, split), part
            yield split, document, part - first_part, name, piece
            position += len(piece)


def by_document(rows: Iterable[cleaned.Row], measured: Measured, shares: Shares) -> Iterator[Row]:
    """Hold out whole documents, chosen by a seeded hash of their text: equal texts share a split.

    The largest is always in train: holding it out could leave next to nothing to learn from.
    Raises UserError where there are fewer different documents than splits.
    """
    distinct, index_of_document = np.unique(measured.hashes, return_inverse=True)
    needed = 2 + (shares.test > 0)
    if len(distinct) < needed:
        raise UserError(
            f"the corpus has {len(distinct)} different document(s), too few to"
            " hold out whole ones; set download.split: tail"
        )
    train, validation, test = range(len(SPLITS))
    size = np.bincount(index_of_document, weights=measured.characters)
    order = np.argsort(size == size.max(), kind="stable")  # by hash, the largest last
    middle = size[order].cumsum() - size[order] / 2
    position = np.empty(len(size))
    position[order] = middle / size.sum()  # of each document's middle in the whole text, 0 to 1
    split = np.full(len(size), train)
    split[position < shares.validation + shares.test] = test
    split[position < shares.validation] = validation
    split[order[0]], split[order[-1]] = validation, train
    if shares.test > 0 and not (split == test).any():
        split[order[-2]] = test
    for document, part, name, text in rows:
        yield SPLITS[split[index_of_document[document]]], document, part, name, text


def write_splits(rows: Iterable[Row], folder: Path) -> dict[str, SplitSize]:
    """Write the rows, in order, to one Parquet file per split; return the size of each split."""
    writers = {split: _SplitWriter(folder / f"{split}.parquet") for split in SPLITS}
    for split, document, part, name, text in rows:
        writers[split].add(document, part, name, text)
    return {split: writer.close() for split, writer in writers.items()}


class _SplitWriter:
    """Writes a split's rows and measures them."""

    def __init__(self, path: Path) -> None:
        self._writer = RowWriter(path)
        self._documents = self._characters = self._bytes = 0
        self._occurs = np.zeros(sys.maxunicode + 1, dtype=np.bool_)

    def add(self, document: int, part: int, name: str, text: str) -> None:
        self._writer.add(document, part, name, text)
        self._documents += part == 0
        self._characters += len(text)
        self._bytes += len(text.encode("utf-8"))
        code_points = np.frombuffer(text.encode("utf-32-le"), dtype="<u4")
        self._occurs[code_points] = True

    def close(self) -> SplitSize:
        self._writer.close()
        return SplitSize(
            documents=self._documents,
            characters=self._characters,
            bytes=self._bytes,
            different_characters=int(self._occurs.sum()),
        )
