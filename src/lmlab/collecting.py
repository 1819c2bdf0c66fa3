"""A corpus becomes documents: cleaned, split into train, validation and test without overlap, with a manifest.

Two passes, neither with more than a row group in memory: the first cleans and measures, the second deals the parts out
to the splits.
"""

import hashlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray
from pydantic import Field, model_validator

from lmlab.cleaning import Cleaner
from lmlab.corpora.base import Corpus, Document
from lmlab.documents import PART_CHARACTERS, ROW_GROUP_BYTES, SCHEMA, SPLITS, read_rows
from lmlab.errors import UserError
from lmlab.files import sha256, whole_folder, write_json
from lmlab.params import Params
from lmlab.parts import OneOf
from lmlab.progress import ProgressBar


class DownloadParams(Params):
    """The section `download`."""

    corpus: Annotated[str, OneOf("corpora")]
    ascii: bool
    split: Literal["tail", "document"]
    validation: float = Field(gt=0, lt=1)
    test: float = Field(ge=0, lt=1)
    split_seed: int = Field(ge=0, lt=2**64)

    @model_validator(mode="after")
    def _leaves_text_to_train_on(self) -> "DownloadParams":
        if self.validation + self.test >= 1:
            raise ValueError(f"validation ({self.validation}) and test ({self.test}) leave nothing to train on")
        return self


def build(params: DownloadParams, corpus: Corpus, folder: Path) -> dict[str, Any]:
    """Write `train.parquet`, `validation.parquet`, `test.parquet` and `manifest.json` into `folder`; return the manifest.

    Raises UserError for an empty corpus or one that cannot be split as asked.
    """
    cleaner = Cleaner(params.ascii)
    with whole_folder(folder) as made:
        everything = made / "everything.parquet"
        measured = _write_cleaned(corpus.documents(), cleaner, everything, params.split_seed)
        if not measured.characters.sum():
            raise UserError(f"the corpus {params.corpus} is empty: no text is left after cleaning; {corpus.source}")
        rows = _deal_by_tail(everything, measured.characters, params) if params.split == "tail" else (
            _deal_by_document(everything, measured, params)
        )  # fmt: skip
        counts = write_splits(rows, made)
        everything.unlink()
        if not counts["train"]["characters"] or not counts["validation"]["characters"]:
            raise UserError(
                f"the corpus {params.corpus} ({measured.characters.sum():,} characters) is too small to be split;"
                " give more text or a larger download.validation"
            )
        manifest = {
            "corpus": params.corpus,
            "source": corpus.source,
            "licence": corpus.licence,
            **corpus.facts(),
            "split": params.split,
            "splits": {split: {**counts[split], "sha256": sha256(made / f"{split}.parquet")} for split in SPLITS},
            "ascii": params.ascii,
            "cleaned": cleaner.record(),
        }
        write_json(made / "manifest.json", manifest)
    return manifest


class Measured:
    """Each document's length and a hash of its text: what the split is decided from, 16 bytes a document."""

    def __init__(self, characters: list[int], hashes: list[int]) -> None:
        self.characters: NDArray[np.int64] = np.array(characters, dtype=np.int64)
        self.hashes: NDArray[np.uint64] = np.array(hashes, dtype=np.uint64)


def _parts(pieces: Iterable[str]) -> Iterator[str]:
    """Regroup pieces into parts of PART_CHARACTERS, cut behind the last newline in reach."""
    held = ""
    for piece in pieces:
        held += piece
        while len(held) > PART_CHARACTERS:
            cut = held.rfind("\n", 0, PART_CHARACTERS) + 1 or PART_CHARACTERS
            yield held[:cut]
            held = held[cut:]
    if held:
        yield held


def _whole_line_ends(pieces: Iterable[str]) -> Iterator[str]:
    """The same text, with no piece ending between \\r and \\n."""
    held = ""
    for piece in pieces:
        held += piece
        if not held.endswith("\r"):
            yield held
            held = ""
    yield held


class _Rows:
    """A Parquet writer whose row groups hold about ROW_GROUP_BYTES of text each."""

    def __init__(self, path: Path) -> None:
        self._writer = pq.ParquetWriter(path, SCHEMA, compression="zstd")
        self._rows: list[tuple[int, int, str, str]] = []
        self._held = 0

    def add(self, document: int, part: int, name: str, text: str) -> None:
        self._rows.append((document, part, name, text))
        self._held += len(text)
        if self._held >= ROW_GROUP_BYTES:
            self._flush()

    def close(self) -> None:
        self._flush()
        self._writer.close()

    def _flush(self) -> None:
        if self._rows:
            columns = [
                pa.array(list(column), field.type)
                for column, field in zip(zip(*self._rows, strict=True), SCHEMA, strict=True)
            ]
            self._writer.write_table(pa.Table.from_arrays(columns, schema=SCHEMA))
        self._rows, self._held = [], 0


def _write_cleaned(documents: Iterable[Document], cleaner: Cleaner, path: Path, seed: int) -> Measured:
    rows = _Rows(path)
    characters: list[int] = []
    hashes: list[int] = []
    with ProgressBar("download: cleaning", 0, "characters") as bar:
        for document in documents:
            length, digest = 0, hashlib.blake2b(key=seed.to_bytes(8, "big"), digest_size=8)
            cleaned = (cleaner.clean(piece) for piece in _whole_line_ends(document.pieces))
            for part, text in enumerate(_parts(cleaned)):
                rows.add(len(characters), part, document.name, text)
                digest.update(text.encode("utf-8", "surrogatepass"))
                length += len(text)
                bar.advance(len(text))
            if length:
                characters.append(length)
                hashes.append(int.from_bytes(digest.digest(), "big"))
    rows.close()
    return Measured(characters, hashes)


_Row = tuple[str, int, int, str, str]
"""Split, document, part, name, text."""


def _deal_by_tail(path: Path, characters: NDArray[np.int64], params: DownloadParams) -> Iterator[_Row]:
    """The text's ends are held out: its last characters are validation, its first test, all between train.

    So validation follows on train, as in most published splits of one text, whatever the size of the test split.
    """
    total = int(characters.sum())
    ends = [int(total * params.test), int(total * (1 - params.validation)), total]
    splits, at, current, first_part = ["test", "train", "validation"], 0, (-1, ""), 0
    for document, part, name, text in read_rows(path, SCHEMA.names):
        while text:
            while at >= ends[0]:
                ends.pop(0)
                splits.pop(0)
            piece, text = text[: ends[0] - at], text[ends[0] - at :]
            if (document, splits[0]) != current:
                # the rest of a document that a boundary cuts is a document of its own in the next split
                current, first_part = (document, splits[0]), part
            yield splits[0], document, part - first_part, name, piece
            at += len(piece)


def _deal_by_document(path: Path, measured: Measured, params: DownloadParams) -> Iterator[_Row]:
    """Whole documents are held out, chosen by a seeded hash of their text, so equal texts land in the same split.

    The largest is always trained on: held out, it could leave next to nothing to learn from.
    """
    distinct, which = np.unique(measured.hashes, return_inverse=True)
    wanted = 2 + (params.test > 0)
    if len(distinct) < wanted:
        raise UserError(
            f"the corpus {params.corpus} has {len(distinct)} different document(s), too few to hold out whole ones;"
            " set download.split: tail"
        )
    size = np.bincount(which, weights=measured.characters)
    order = np.argsort(size == size.max(), kind="stable")  # that of the hashes, but for the largest
    share = np.empty(len(size))
    share[order] = (size[order].cumsum() - size[order] / 2) / size.sum()  # where each document's middle lies
    split = np.where(share < params.validation, 1, np.where(share < params.validation + params.test, 2, 0))
    split[order[0]], split[order[-1]] = 1, 0
    if params.test > 0 and not (split == 2).any():
        split[order[-2]] = 2
    for document, part, name, text in read_rows(path, SCHEMA.names):
        yield SPLITS[split[which[document]]], document, part, name, text


def write_splits(rows: Iterable[_Row], folder: Path) -> dict[str, dict[str, int]]:
    """Write one file a split from its rows, in order; return the documents, characters and bytes of each split."""
    counts = {split: {"documents": 0, "characters": 0, "bytes": 0} for split in SPLITS}
    writers = {split: _Rows(folder / f"{split}.parquet") for split in SPLITS}
    for split, document, part, name, text in rows:
        writers[split].add(document, part, name, text)
        counts[split]["documents"] += part == 0
        counts[split]["characters"] += len(text)
        counts[split]["bytes"] += len(text.encode("utf-8"))
    for writer in writers.values():
        writer.close()
    return counts
