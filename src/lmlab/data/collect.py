"""A corpus becomes documents: cleaned, split into train, validation and test without overlap, with
a manifest.

Three passes, none with more than a row group in memory: the first cleans and measures, the second
deals the parts out to the splits, the third looks for what these have in common. All that was
dropped, replaced, left out or repeated on the way is counted in the manifest and said on the
screen.
"""

import hashlib
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray
from pydantic import Field, model_validator

from lmlab.core.errors import UserError
from lmlab.core.files import sha256, whole_folder, write_json
from lmlab.core.params import Params
from lmlab.core.progress import ProgressBar
from lmlab.core.registry import OneOf
from lmlab.data.cleaning import Cleaner
from lmlab.data.corpora.base import Corpus, Document
from lmlab.data.corpus_summary import count_and_share, lines, listed
from lmlab.data.documents import PART_CHARACTERS, ROW_GROUP_BYTES, SCHEMA, SPLITS, read_rows
from lmlab.data.globs import shown
from lmlab.data.overlap import overlap

EMPTY = "empty documents"
LEAST_HELD_OUT = 1000
"""Bytes of validation or test, below which it is said that there are so few: the loss on them is
off by a tenth of a bit.
"""


class DownloadParams(Params):
    """The section `download`."""

    corpus: Annotated[str, OneOf("corpora")]
    ascii: bool
    most_dropped: float = Field(ge=0, le=1)
    split: Literal["tail", "document"]
    validation: float = Field(gt=0, lt=1)
    test: float = Field(ge=0, lt=1)
    split_seed: int = Field(ge=0)

    @model_validator(mode="after")
    def _leaves_text_to_train_on(self) -> "DownloadParams":
        if self.validation + self.test >= 1:
            raise ValueError(
                f"validation ({self.validation}) and test ({self.test}) leave nothing to train on"
            )
        return self


def build(params: DownloadParams, corpus: Corpus, folder: Path) -> dict[str, Any]:
    """Write `train.parquet`, `validation.parquet`, `test.parquet` and `manifest.json` into
    `folder`; return the manifest.

    Prints what became of the text on its way there. Raises UserError for an empty corpus, for one
    that cannot be split as asked, and where writing it in ASCII drops more than
    `params.most_dropped` of it.
    """
    cleaner = Cleaner(params.ascii)
    with whole_folder(folder) as made:
        everything = made / "everything.parquet"
        measured = _write_cleaned(corpus.documents(), cleaner, everything, params)
        _check_dropped(cleaner, params)
        facts = corpus.facts()
        left_out = {
            **facts.pop("left_out", {}),
            **({EMPTY: measured.empty} if measured.empty else {}),
        }
        if not measured.characters.sum():
            also = f"; left out: {listed(left_out)}" if left_out else ""
            raise UserError(
                f"the corpus {params.corpus} is empty: no text is left after cleaning;"
                f" {corpus.source}{also}"
            )
        rows = (
            _deal_by_tail(everything, measured.characters, params)
            if params.split == "tail"
            else (_deal_by_document(everything, measured, params))
        )
        counts = write_splits(_with_progress(rows, int(measured.characters.sum())), made)
        everything.unlink()
        if not counts["train"]["characters"] or not counts["validation"]["characters"]:
            raise UserError(
                f"the corpus {params.corpus} ({measured.characters.sum():,} characters) is too"
                " small to be split;"
                " give more text or a larger download.validation"
            )
        manifest = {
            "corpus": params.corpus,
            "source": corpus.source,
            "licence": corpus.licence,
            **facts,
            "left_out": left_out,
            "split": params.split,
            "splits": {
                split: {**counts[split], "sha256": sha256(made / f"{split}.parquet")}
                for split in SPLITS
            },
            **overlap(made, {split: counts[split]["characters"] for split in SPLITS}),
            "ascii": params.ascii,
            "cleaning": {**cleaner.losses(), "emptied_documents": measured.emptied},
            "cleaned": cleaner.record(),
        }
        write_json(made / "manifest.json", manifest)
    for line in lines(manifest):
        print(f"download: {line}", flush=True)
    for line in _warnings(params, counts):
        print(f"warning: download: {line}", file=sys.stderr, flush=True)
    return manifest


def _warnings(params: DownloadParams, counts: dict[str, dict[str, int]]) -> Iterator[str]:
    """On held-out splits that are asked for and hardly there."""
    for split, share in (("validation", params.validation), ("test", params.test)):
        held_out = counts[split]["bytes"]
        if share and held_out < LEAST_HELD_OUT:
            came_to = f"has only {held_out:,} bytes" if held_out else "is empty"
            yield (
                f"the {split} split {came_to} (download.{split}: {share:g}); a loss on fewer than"
                f" {LEAST_HELD_OUT:,} is"
                " mostly chance: give more text or a larger share"
            )


def _check_dropped(cleaner: Cleaner, params: DownloadParams) -> None:
    """Raise UserError where more was dropped than params allow."""
    losses = cleaner.losses()
    if params.ascii and losses["dropped"] > params.most_dropped * losses["characters"]:
        dropped = count_and_share(losses["dropped"], losses["characters"])
        examples = " ".join(map(shown, cleaner.dropped()[:5]))
        raise UserError(
            f"params.yaml: download.ascii: true drops {dropped} of {losses['characters']:,}"
            " characters, which ASCII cannot"
            f" spell (most often {examples}); set download.ascii: false to keep them all, or"
            " raise download.most_dropped"
            f" ({params.most_dropped}) if they may go"
        )


class Measured:
    """Each document's length and a hash of its text: what the split is decided from, 16 bytes a
    document.
    """

    def __init__(self, characters: list[int], hashes: list[int], empty: int, emptied: int) -> None:
        self.characters: NDArray[np.int64] = np.array(characters, dtype=np.int64)
        self.hashes: NDArray[np.uint64] = np.array(hashes, dtype=np.uint64)
        self.empty = empty
        """How many documents came without a character; they are in none of the lists."""
        self.emptied = emptied
        """How many came with more than white space, or with any, of which cleaning left nothing or
        white space alone.
        """


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


def _write_cleaned(
    documents: Iterable[Document], cleaner: Cleaner, path: Path, params: DownloadParams
) -> Measured:
    rows = _Rows(path)
    characters: list[int] = []
    hashes: list[int] = []
    empty = emptied = 0
    with ProgressBar("download: cleaning", 0, "characters") as bar:
        for document in documents:
            length, digest = (
                0,
                hashlib.blake2b(key=params.split_seed.to_bytes(8, "big"), digest_size=8),
            )
            read = _Watched(_whole_line_ends(document.pieces))
            cleaned = _Watched(cleaner.clean(piece) for piece in read)
            for part, text in enumerate(_parts(cleaned)):
                rows.add(len(characters), part, document.name, text)
                digest.update(text.encode("utf-8", "surrogatepass"))
                length += len(text)
                bar.advance(len(text))
            if length:
                characters.append(length)
                hashes.append(int.from_bytes(digest.digest(), "big"))
            empty += not read.any
            emptied += (read.any and not length) or (read.any_visible and not cleaned.any_visible)
    rows.close()
    return Measured(characters, hashes, empty, emptied)


class _Watched:
    """Passes pieces of text on and notes whether there were any characters, and any but white
    space.
    """

    def __init__(self, pieces: Iterable[str]) -> None:
        self._pieces = pieces
        self.any = self.any_visible = False

    def __iter__(self) -> Iterator[str]:
        for piece in self._pieces:
            self.any |= bool(piece)
            self.any_visible |= bool(piece) and not piece.isspace()
            yield piece


_Row = tuple[str, int, int, str, str]
"""Split, document, part, name, text."""


def _deal_by_tail(
    path: Path, characters: NDArray[np.int64], params: DownloadParams
) -> Iterator[_Row]:
    """The text's ends are held out: its last characters are validation, its first test, all between
    train.

    So validation follows on train, as in most published splits of one text, whatever the size of
    the test split.
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
                # the rest of a document that a boundary cuts is a document of its own in the next
                # split
                current, first_part = (document, splits[0]), part
            yield splits[0], document, part - first_part, name, piece
            at += len(piece)


def _deal_by_document(path: Path, measured: Measured, params: DownloadParams) -> Iterator[_Row]:
    """Whole documents are held out, chosen by a seeded hash of their text, so equal texts land in
    the same split.

    The largest is always trained on: held out, it could leave next to nothing to learn from.
    """
    distinct, which = np.unique(measured.hashes, return_inverse=True)
    wanted = 2 + (params.test > 0)
    if len(distinct) < wanted:
        raise UserError(
            f"the corpus {params.corpus} has {len(distinct)} different document(s), too few to"
            " hold out whole ones;"
            " set download.split: tail"
        )
    size = np.bincount(which, weights=measured.characters)
    order = np.argsort(size == size.max(), kind="stable")  # that of the hashes, but for the largest
    share = np.empty(len(size))
    share[order] = (
        size[order].cumsum() - size[order] / 2
    ) / size.sum()  # where each document's middle lies
    split = np.where(
        share < params.validation, 1, np.where(share < params.validation + params.test, 2, 0)
    )
    split[order[0]], split[order[-1]] = 1, 0
    if params.test > 0 and not (split == 2).any():
        split[order[-2]] = 2
    for document, part, name, text in read_rows(path, SCHEMA.names):
        yield SPLITS[split[which[document]]], document, part, name, text


def _with_progress(rows: Iterable[_Row], characters: int) -> Iterator[_Row]:
    with ProgressBar("download: splitting", characters, "characters") as bar:
        for row in rows:
            yield row
            bar.advance(len(row[-1]))


def write_splits(rows: Iterable[_Row], folder: Path) -> dict[str, dict[str, int]]:
    """Write one file a split from its rows, in order; return what each split has.

    That is its `documents`, `characters`, `bytes` in UTF-8 and `different_characters`.
    """
    counts = {split: {"documents": 0, "characters": 0, "bytes": 0} for split in SPLITS}
    occurs = {split: np.zeros(sys.maxunicode + 1, dtype=np.bool_) for split in SPLITS}
    writers = {split: _Rows(folder / f"{split}.parquet") for split in SPLITS}
    for split, document, part, name, text in rows:
        writers[split].add(document, part, name, text)
        counts[split]["documents"] += part == 0
        counts[split]["characters"] += len(text)
        counts[split]["bytes"] += len(text.encode("utf-8"))
        occurs[split][np.frombuffer(text.encode("utf-32-le"), dtype="<u4")] = True
    for writer in writers.values():
        writer.close()
    return {
        split: {**counts[split], "different_characters": int(occurs[split].sum())}
        for split in SPLITS
    }
