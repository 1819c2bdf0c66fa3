"""Turn a corpus into documents: cleaned, split into train, validation and test, with a manifest.

There are three passes, each with no more than a row group in memory: the first cleans the text and
measures the documents, the second leaves out duplicates, if asked, and assigns the others to the
splits, the third looks for what the splits share. Everything dropped, replaced, left out or
repeated on the way is counted in the manifest and printed.
"""

import hashlib
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Annotated, Literal, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray
from pydantic import Field, model_validator

from lmlab.core.errors import UserError, printable
from lmlab.core.files import sha256, whole_folder, write_json
from lmlab.core.params import Params
from lmlab.core.progress import ProgressBar
from lmlab.core.registry import OneOf
from lmlab.data.cleaning import Cleaner
from lmlab.data.corpora.base import Corpus, Document
from lmlab.data.corpus_manifest import FILE, Cleaning, CorpusManifest, Split, SplitSize
from lmlab.data.corpus_summary import count_and_share, lines, listed
from lmlab.data.documents import PART_CHARACTERS, ROW_GROUP_BYTES, SCHEMA, SPLITS, read_rows
from lmlab.data.duplicates import (
    Duplicates,
    Signatures,
    check_can_find,
    first_of_equal,
    first_of_near,
)
from lmlab.data.overlap import overlap

EMPTY, EQUAL, NEAR = "empty documents", "equal documents", "nearly equal documents"
"""Reasons why a document is left out."""
SIGNATURES = "signatures.bin"
"""A scratch file beside the documents."""
MOST_HELD_OUT = 200_000_000
"""Bytes of a held-out split above which a warning is printed: each is some numbers in memory."""
LEAST_HELD_OUT = 1000
"""Bytes of a held-out split below which a warning is printed: a loss on fewer is 0.1 bits off."""


class DownloadParams(Params):
    """The section `download`."""

    corpus: Annotated[str, OneOf("corpora")]
    ascii: bool
    most_dropped: float = Field(ge=0, le=1)
    duplicates: Duplicates
    similarity: float = Field(gt=0, le=1)
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


def build(params: DownloadParams, corpus: Corpus, folder: Path) -> CorpusManifest:
    """Write each split's Parquet file and `manifest.json` into `folder`; return the manifest.

    Prints what became of the text. Raises UserError for an empty corpus, for one that cannot be
    split as requested, and where ASCII drops more than `params.most_dropped` of it.
    """
    cleaner = Cleaner(params.ascii)
    check_can_find(params.duplicates)
    with whole_folder(folder) as partial:
        everything = partial / "everything.parquet"
        measured = _write_cleaned(corpus.documents(), cleaner, everything, params)
        _check_dropped(cleaner, params)
        facts = corpus.facts()
        left_out: dict[str, int] = dict(facts.pop("left_out", {}))
        if measured.empty:
            left_out[EMPTY] = measured.empty
        kept, left_out_as = _kept(measured, params)
        left_out |= left_out_as
        measured = measured.without(~kept)
        characters = int(measured.characters.sum())
        if not characters:
            reasons = f"; left out: {listed(left_out)}" if left_out else ""
            raise UserError(
                f"the corpus {params.corpus} is empty: no text is left after cleaning;"
                f" {corpus.source}{reasons}"
            )
        if params.split == "tail":
            rows = _split_by_tail(_rows_of(everything, kept), characters, params)
        else:
            rows = _split_by_document(_rows_of(everything, kept), measured, params)
        sizes = write_splits(_with_progress(rows, characters), partial)
        everything.unlink()
        (partial / SIGNATURES).unlink(missing_ok=True)
        if not sizes["train"].characters or not sizes["validation"].characters:
            raise UserError(
                f"the corpus {params.corpus} ({characters:,} characters) is too small to be split;"
                " give more text or a larger download.validation"
            )
        splits = {}
        for split, size in sizes.items():
            digest = sha256(partial / f"{split}.parquet")
            splits[split] = Split(**size.record(), sha256=digest)
        equal_documents, verbatim = overlap(
            partial, {split: size.characters for split, size in sizes.items()}
        )
        losses = cleaner.losses().record()
        manifest = CorpusManifest(
            corpus=params.corpus,
            source=corpus.source,
            licence=corpus.licence,
            facts=facts,
            left_out=left_out,
            split=params.split,
            splits=splits,
            equal_documents=equal_documents,
            verbatim=verbatim,
            ascii=params.ascii,
            cleaning=Cleaning(**losses, emptied_documents=measured.emptied),
            cleaned=cleaner.changes(),
        )
        write_json(partial / FILE, manifest.record())
    for line in lines(manifest):
        print(f"download: {line}", flush=True)
    for line in _warnings(params, sizes):
        print(f"warning: download: {line}", file=sys.stderr, flush=True)
    return manifest


def _warnings(params: DownloadParams, sizes: dict[str, SplitSize]) -> Iterator[str]:
    """A line for each held-out split that is wanted but nearly empty, or more than is worth it."""
    for split, share in (("validation", params.validation), ("test", params.test)):
        size = sizes[split].bytes
        if share and size < LEAST_HELD_OUT:
            problem = f"has only {size:,} bytes" if size else "is empty"
            yield (
                f"the {split} split {problem} (download.{split}: {share:g}); a loss on fewer than"
                f" {LEAST_HELD_OUT:,} is mostly chance: give more text or a larger share"
            )
        if size > MOST_HELD_OUT:
            yield (
                f"the {split} split has {size:,} bytes (download.{split}: {share:g}), all of which"
                " every evaluation reads and holds in memory; a smaller share is as telling"
            )


def _check_dropped(cleaner: Cleaner, params: DownloadParams) -> None:
    """Raise UserError where cleaning dropped more than params allow."""
    losses = cleaner.losses()
    if params.ascii and losses.dropped > params.most_dropped * losses.characters:
        dropped = count_and_share(losses.dropped, losses.characters)
        examples = " ".join(map(printable, cleaner.dropped()[:5]))
        raise UserError(
            f"params.yaml: download.ascii: true drops {dropped} of {losses.characters:,}"
            f" characters, which ASCII cannot spell (most often {examples}); set download.ascii:"
            " false to keep them all, or raise download.most_dropped"
            f" ({params.most_dropped}) if they may go"
        )


class Measured(NamedTuple):
    """What the split is decided from: each document's length and a hash of its text, 16 bytes per
    document.
    """

    characters: NDArray[np.int64]
    """By document, shape (documents,)."""
    hashes: NDArray[np.uint64]
    """By document, shape (documents,)."""
    empty: int
    """How many more documents had no characters to begin with."""
    emptied: int
    """How many documents cleaning left without any characters, or with white space only though
    they had more.
    """
    identities: NDArray[np.uint64]
    """More bits of a hash of the text, shape (documents, 2); no documents where none are left out.
    """
    signatures: NDArray[np.uint32]
    """For near duplicates; no documents where these are not looked for."""

    def without(self, left_out: NDArray[np.bool_]) -> "Measured":
        """The measures of the other documents."""
        return self._replace(characters=self.characters[~left_out], hashes=self.hashes[~left_out])


def _kept(measured: Measured, params: DownloadParams) -> tuple[NDArray[np.bool_], dict[str, int]]:
    """Which documents are no duplicates, and how many of the others there are, by reason."""
    kept = np.ones(len(measured.characters), np.bool_)
    if params.duplicates == "keep" or not len(kept):
        return kept, {}
    kept = first_of_equal(measured.identities)
    reasons = {EQUAL: len(kept) - int(kept.sum())}
    if params.duplicates == "near":
        before = int(kept.sum())
        kept = first_of_near(measured.signatures, params.similarity, kept)
        reasons[NEAR] = before - int(kept.sum())
    return kept, {reason: count for reason, count in reasons.items() if count}


def _rows_of(path: Path, kept: NDArray[np.bool_]) -> Iterator["_Whole"]:
    """The rows of the documents that are kept, numbered without gaps."""
    numbers = np.cumsum(kept) - 1
    for document, part, name, text in read_rows(path, SCHEMA.names):
        if kept[document]:
            yield int(numbers[document]), part, name, text


def _parts(pieces: Iterable[str]) -> Iterator[str]:
    """Regroup pieces into parts of PART_CHARACTERS, each cut after its last newline if it has
    one.
    """
    pending = ""
    for piece in pieces:
        pending += piece
        while len(pending) > PART_CHARACTERS:
            cut = pending.rfind("\n", 0, PART_CHARACTERS) + 1 or PART_CHARACTERS
            yield pending[:cut]
            pending = pending[cut:]
    if pending:
        yield pending


def _whole_line_ends(pieces: Iterable[str]) -> Iterator[str]:
    """The same text, with no piece ending between \\r and \\n."""
    pending = ""
    for piece in pieces:
        pending += piece
        if not pending.endswith("\r"):
            yield pending
            pending = ""
    yield pending


class _RowWriter:
    """Writes documents to Parquet in row groups of about ROW_GROUP_BYTES of text."""

    def __init__(self, path: Path) -> None:
        self._writer = pq.ParquetWriter(path, SCHEMA, compression="zstd")
        self._rows: list[tuple[int, int, str, str]] = []
        self._characters = 0

    def add(self, document: int, part: int, name: str, text: str) -> None:
        self._rows.append((document, part, name, text))
        self._characters += len(text)
        if self._characters >= ROW_GROUP_BYTES:
            self._flush()

    def close(self) -> None:
        self._flush()
        self._writer.close()

    def _flush(self) -> None:
        if self._rows:
            columns = zip(*self._rows, strict=True)
            arrays = [
                pa.array(list(column), field.type)
                for column, field in zip(columns, SCHEMA, strict=True)
            ]
            self._writer.write_table(pa.Table.from_arrays(arrays, schema=SCHEMA))
        self._rows = []
        self._characters = 0


def _write_cleaned(
    documents: Iterable[Document], cleaner: Cleaner, path: Path, params: DownloadParams
) -> Measured:
    """Clean the documents, write them to one Parquet file, and measure them."""
    writer = _RowWriter(path)
    key = params.split_seed.to_bytes(8, "big")
    characters: list[int] = []
    hashes: list[int] = []
    identities: list[bytes] = []
    signatures = Signatures(path.with_name(SIGNATURES)) if params.duplicates == "near" else None
    empty = emptied = 0
    with ProgressBar("download: cleaning", 0, "characters") as bar:
        for document in documents:
            length = 0
            digest = hashlib.blake2b(key=key, digest_size=8)
            identity = hashlib.blake2b(digest_size=16)
            raw = _Observed(_whole_line_ends(document.pieces))
            cleaned = _Observed(map(cleaner.clean, raw))
            for part, text in enumerate(_parts(cleaned)):
                writer.add(len(characters), part, document.name, text)
                encoded = text.encode("utf-8", "surrogatepass")
                digest.update(encoded)
                if params.duplicates != "keep":
                    identity.update(encoded)
                if signatures:
                    signatures.add(text)
                length += len(text)
                bar.advance(len(text))
            if length:
                characters.append(length)
                hashes.append(int.from_bytes(digest.digest(), "big"))
                identities.append(identity.digest() if params.duplicates != "keep" else b"")
                if signatures:
                    signatures.end()
            empty += not raw.any
            emptied += (raw.any and not length) or (raw.any_visible and not cleaned.any_visible)
    writer.close()
    return Measured(
        np.array(characters, dtype=np.int64),
        np.array(hashes, dtype=np.uint64),
        empty,
        emptied,
        np.frombuffer(b"".join(identities), dtype=np.uint64).reshape(-1, 2),
        signatures.close() if signatures else np.zeros((0, 0), np.uint32),
    )


class _Observed:
    """Passes pieces of text on and records whether they had characters, and any but white space."""

    def __init__(self, pieces: Iterable[str]) -> None:
        self._pieces = pieces
        self.any = self.any_visible = False

    def __iter__(self) -> Iterator[str]:
        for piece in self._pieces:
            self.any |= bool(piece)
            self.any_visible |= bool(piece) and not piece.isspace()
            yield piece


_Whole = tuple[int, int, str, str]
"""Document, part, name, text."""
_Row = tuple[str, int, int, str, str]
"""Split, document, part, name, text."""


def _split_by_tail(
    rows: Iterable[_Whole], characters: int, params: DownloadParams
) -> Iterator[_Row]:
    """Hold out the ends of the text: its first characters are test, its last validation.

    So validation continues train, as in most published splits of a single text, whatever the size
    of the test split.
    """
    splits = ["test", "train", "validation"]
    ends = [int(characters * params.test), int(characters * (1 - params.validation)), characters]
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


def _split_by_document(
    rows: Iterable[_Whole], measured: Measured, params: DownloadParams
) -> Iterator[_Row]:
    """Hold out whole documents, chosen by a seeded hash of their text: equal texts share a split.

    The largest is always in train: holding it out could leave next to nothing to learn from.
    Raises UserError where there are fewer different documents than splits.
    """
    distinct, index_of_document = np.unique(measured.hashes, return_inverse=True)
    needed = 2 + (params.test > 0)
    if len(distinct) < needed:
        raise UserError(
            f"the corpus {params.corpus} has {len(distinct)} different document(s), too few to"
            " hold out whole ones; set download.split: tail"
        )
    train, validation, test = range(len(SPLITS))
    size = np.bincount(index_of_document, weights=measured.characters)
    order = np.argsort(size == size.max(), kind="stable")  # by hash, the largest last
    middle = size[order].cumsum() - size[order] / 2
    position = np.empty(len(size))
    position[order] = middle / size.sum()  # of each document's middle in the whole text, 0 to 1
    split = np.full(len(size), train)
    split[position < params.validation + params.test] = test
    split[position < params.validation] = validation
    split[order[0]], split[order[-1]] = validation, train
    if params.test > 0 and not (split == test).any():
        split[order[-2]] = test
    for document, part, name, text in rows:
        yield SPLITS[split[index_of_document[document]]], document, part, name, text


def _with_progress(rows: Iterable[_Row], characters: int) -> Iterator[_Row]:
    with ProgressBar("download: splitting", characters, "characters") as bar:
        for row in rows:
            yield row
            bar.advance(len(row[-1]))


def write_splits(rows: Iterable[_Row], folder: Path) -> dict[str, SplitSize]:
    """Write the rows, in order, to one Parquet file per split; return the size of each split."""
    writers = {split: _SplitWriter(folder / f"{split}.parquet") for split in SPLITS}
    for split, document, part, name, text in rows:
        writers[split].add(document, part, name, text)
    return {split: writer.close() for split, writer in writers.items()}


class _SplitWriter:
    """Writes a split's rows and measures them."""

    def __init__(self, path: Path) -> None:
        self._writer = _RowWriter(path)
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
