"""A corpus's text, cleaned: in chunks on disk, with what is measured of each document.

A chunk is kept as soon as it is full. Work that was stopped goes on behind the last one: the text
up to there is read again and compared, by its hash, with what was read before, but not cleaned
again. Where it differs, or what was kept is damaged, the work begins anew.
"""

import hashlib
import json
import os
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, ValidationError

from lmlab.core.errors import UserError
from lmlab.core.files import Record, read_json, seal, sha256, write_json
from lmlab.core.progress import ProgressBar
from lmlab.data.cleaning import Cleaner
from lmlab.data.corpora.base import Corpus, Document
from lmlab.data.documents import PART_CHARACTERS, SCHEMA, RowWriter, read_rows
from lmlab.data.duplicates import Duplicates, Signatures, SignatureState, on_disk

CHUNK_CHARACTERS = 1 << 26
"""Of cleaned text; what is lost at most where the work is stopped."""
PARTIAL = "chunk.partial"
PROGRESS = "progress.json"
SIGNATURES = "signatures.bin"
ANEW = "cleaning begins anew"

Row = tuple[int, int, str, str]
"""Document, part, name, text."""


class Measured(NamedTuple):
    """What is known of the documents that have any text: 16 bytes of memory for each, 32 where
    duplicates are looked for.
    """

    characters: NDArray[np.int64]
    """By document, shape (documents,)."""
    hashes: NDArray[np.uint64]
    """Of the text, by document, shape (documents,)."""
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


class OpenDocument(BaseModel):
    """Where a document is whose end has not been read."""

    model_config = ConfigDict(extra="forbid")

    first_chunk: int
    """That has any part of it."""
    parts: int = 0
    """Written so far."""
    characters: int = 0
    """In these parts."""
    pending: str = ""
    """Cleaned text that is in no part yet."""
    had_any: bool = False
    """Whether there have been any characters before cleaning."""
    had_visible: bool = False
    """Whether there have been any but white space before cleaning."""
    has_visible: bool = False
    """Whether there are any but white space after it."""
    signature: SignatureState | None = None


class Progress(Record):
    """How far the work is: what is needed to go on with it."""

    events: int
    """Pieces and ends of documents that were read."""
    text_hash: str
    """Of all that was read."""
    documents: int
    """That have any text and have ended."""
    empty: int
    emptied: int
    files: dict[str, str]
    """The chunks and the measures of the documents that ended in each, with their SHA-256."""
    characters: int
    """The cleaner's counts."""
    changed: list[tuple[list[int], int]]
    """As code points, since half surrogates are in no file."""
    open: OpenDocument | None


class CleanedText:
    """The cleaned text of a corpus in a folder."""

    def __init__(self, folder: Path, chunks: int, measured: Measured) -> None:
        self.folder, self.chunks, self.measured = folder, chunks, measured

    def rows(self) -> Iterator[Row]:
        """All rows, in order."""
        for number in range(self.chunks):
            yield from read_rows(self.folder / _chunk(number), SCHEMA.names)


def clean(
    corpus: Corpus, cleaner: Cleaner, folder: Path, hash_key: bytes, duplicates: Duplicates
) -> CleanedText:
    """Clean the documents and measure them, from where the work in `folder` was stopped.

    The cleaner counts everything, what was done before included. `hash_key` decides the documents'
    hashes. Raises UserError where the source cannot be read.
    """
    begin = partial(_Work, cleaner, folder, hash_key, duplicates)
    before = _progress(folder)
    if before:
        done = f"{before.characters:,} characters were cleaned before"
        print(f"download: {done}; they are read again and compared", flush=True)
        try:
            return _clean(corpus, begin, before)
        except _OtherText:
            print(f"download: the text is not what was cleaned before: {ANEW}", flush=True)
    return _clean(corpus, begin, None)


class _OtherText(Exception):  # noqa: N818 (not an error)
    """What is read is not what was read before."""


def _progress(folder: Path) -> Progress | None:
    """What is kept of the work; None where nothing is, or something of it is damaged."""
    if not (folder / PROGRESS).exists():
        return None
    try:
        values = read_json(folder / PROGRESS, made_by="download")
        progress = Progress.model_validate_json(json.dumps(values))
        intact = all(sha256(folder / name) == sha for name, sha in progress.files.items())
        if intact:
            return progress
    except (UserError, ValidationError, OSError):
        pass
    print(f"download: what was cleaned before is damaged: {ANEW}", flush=True)
    return None


def _clean(
    corpus: Corpus, begin: Callable[[Progress | None], "_Work"], before: Progress | None
) -> CleanedText:
    """`clean` behind what was done before. Raises _OtherText where that was of another text."""
    work: _Work | None = None
    read = _Read()
    with ProgressBar("download: cleaning", 0, "characters") as bar:
        for name, piece in _events(corpus.documents()):
            read.add(name, piece)
            bar.advance(len(piece or ""))
            if before and read.events <= before.events:
                if read.events == before.events and read.hash() != before.text_hash:
                    raise _OtherText
                continue
            work = work or begin(before)
            work.take(name, piece)
            if work.chunk_is_full:
                work.keep(read)
    if before and read.events < before.events:
        raise _OtherText
    return (work or begin(before)).finish(read)


def _events(documents: Iterable[Document]) -> Iterator[tuple[str, str | None]]:
    """Each document's name with each of its pieces, then with None, as it ends."""
    for document in documents:
        for piece in _whole_line_ends(document.pieces):
            yield document.name, piece
        yield document.name, None


def _whole_line_ends(pieces: Iterable[str]) -> Iterator[str]:
    """The same text, with no piece ending between \\r and \\n."""
    pending = ""
    for piece in pieces:
        pending += piece
        if not pending.endswith("\r"):
            yield pending
            pending = ""
    yield pending


class _Read:
    """What has been read: how many pieces and ends of documents, and a hash of them."""

    def __init__(self) -> None:
        self.events = 0
        self._hash = hashlib.blake2b(digest_size=16)

    def add(self, name: str, piece: str | None) -> None:
        self.events += 1
        for part in (name, "end" if piece is None else "piece", piece or ""):
            encoded = part.encode("utf-8", "surrogatepass")
            self._hash.update(f"{len(encoded)} ".encode())
            self._hash.update(encoded)

    def hash(self) -> str:
        return self._hash.hexdigest()


class _Work:
    """Cleans piece after piece, writes what that gives and measures it."""

    def __init__(
        self,
        cleaner: Cleaner,
        folder: Path,
        hash_key: bytes,
        duplicates: Duplicates,
        before: Progress | None,
    ) -> None:
        self.cleaner, self.folder, self.hash_key = cleaner, folder, hash_key
        self.finds_equal = duplicates != "keep"
        self.files: dict[str, str] = {}
        self.events_kept = self.documents = self.empty = self.emptied = 0
        self.document: OpenDocument | None = None
        if before:
            self.files = dict(before.files)
            self.events_kept, self.documents = before.events, before.documents
            self.empty, self.emptied = before.empty, before.emptied
            cleaner.characters = before.characters
            cleaner.changed.update({"".join(map(chr, of)): count for of, count in before.changed})
        self.signatures = Signatures() if duplicates == "near" else None
        self._begin_chunk()
        if before and before.open:
            self._go_on_with(before.open)

    @property
    def chunks(self) -> int:
        """How many are kept."""
        return len(self.files) // 2

    @property
    def chunk_is_full(self) -> bool:
        return self._chunk_characters >= CHUNK_CHARACTERS

    def take(self, name: str, piece: str | None) -> None:
        """Clean a document's next piece; None ends the document."""
        document = self.document or self._begin_document(OpenDocument(first_chunk=self.chunks))
        if piece is None:
            self._end_document(name, document)
            return
        cleaned = self.cleaner.clean(piece)
        document.had_any |= bool(piece)
        document.had_visible |= bool(piece) and not piece.isspace()
        document.has_visible |= bool(cleaned) and not cleaned.isspace()
        document.pending += cleaned
        while len(document.pending) > PART_CHARACTERS:
            cut = document.pending.rfind("\n", 0, PART_CHARACTERS) + 1 or PART_CHARACTERS
            part, document.pending = document.pending[:cut], document.pending[cut:]
            self._write_part(name, document, part)

    def keep(self, read: _Read) -> None:
        """End the chunk and note how far the work is."""
        number = self.chunks
        parquet, measures = _chunk(number), _measures(number)
        writer = self._writer or RowWriter(self.folder / PARTIAL)
        writer.close()
        os.replace(self.folder / PARTIAL, self.folder / parquet)
        np.savez(
            self.folder / measures,
            characters=np.array(self._characters, np.int64),
            hashes=np.array(self._hashes, np.uint64),
            identities=np.frombuffer(b"".join(self._identities), np.uint64).reshape(-1, 2),
            signatures=self.signatures.taken() if self.signatures else np.zeros((0, 0), np.uint32),
        )
        self.files |= {name: sha256(self.folder / name) for name in (parquet, measures)}
        if self.signatures and self.document:
            self.document.signature = self.signatures.state()
        progress = Progress(
            events=read.events,
            text_hash=read.hash(),
            documents=self.documents,
            empty=self.empty,
            emptied=self.emptied,
            files=self.files,
            characters=self.cleaner.characters,
            changed=[([*map(ord, of)], count) for of, count in self.cleaner.changed.items()],
            open=self.document,
        )
        write_json(self.folder / PROGRESS, seal(progress.record()))
        self.events_kept = read.events
        self._begin_chunk()

    def finish(self, read: _Read) -> CleanedText:
        """All of the text, after its end."""
        if read.events > self.events_kept:
            self.keep(read)
        signatures = np.zeros((0, 0), np.uint32)
        if self.signatures:
            signatures = on_disk(self.folder / SIGNATURES, self._all("signatures"))
        measured = Measured(
            np.concatenate([np.zeros(0, np.int64), *self._all("characters")]),
            np.concatenate([np.zeros(0, np.uint64), *self._all("hashes")]),
            self.empty,
            self.emptied,
            np.concatenate([np.zeros((0, 2), np.uint64), *self._all("identities")]),
            signatures,
        )
        return CleanedText(self.folder, self.chunks, measured)

    def _all(self, name: str) -> Iterator[NDArray[Any]]:
        """A measure of the documents that end in each chunk."""
        for number in range(self.chunks):
            with np.load(self.folder / _measures(number)) as measures:
                yield measures[name]

    def _begin_chunk(self) -> None:
        self._writer: RowWriter | None = None
        self._chunk_characters = 0
        # of the documents that end in it:
        self._characters: list[int] = []
        self._hashes: list[int] = []
        self._identities: list[bytes] = []

    def _begin_document(self, document: OpenDocument) -> OpenDocument:
        self.document = document
        self._hash = hashlib.blake2b(key=self.hash_key, digest_size=8)
        self._identity = hashlib.blake2b(digest_size=16)
        return document

    def _go_on_with(self, document: OpenDocument) -> None:
        """Go on with a document of which there are parts in the chunks that are kept."""
        self._begin_document(document)
        for number in range(document.first_chunk, self.chunks):
            for of, _, _, text in read_rows(self.folder / _chunk(number), SCHEMA.names):
                if of == self.documents:
                    self._hash_part(text)
        if self.signatures and document.signature:
            self.signatures.go_on_from(document.signature)

    def _hash_part(self, text: str) -> None:
        encoded = text.encode("utf-8")
        self._hash.update(encoded)
        if self.finds_equal:
            self._identity.update(encoded)

    def _write_part(self, name: str, document: OpenDocument, text: str) -> None:
        if not self._writer:
            self._writer = RowWriter(self.folder / PARTIAL)
        self._writer.add(self.documents, document.parts, name, text)
        self._hash_part(text)
        if self.signatures:
            self.signatures.add(text)
        document.parts += 1
        document.characters += len(text)
        self._chunk_characters += len(text)

    def _end_document(self, name: str, document: OpenDocument) -> None:
        if document.pending:
            self._write_part(name, document, document.pending)
        if document.characters:
            self.documents += 1
            self._characters.append(document.characters)
            self._hashes.append(int.from_bytes(self._hash.digest(), "big"))
            if self.finds_equal:
                self._identities.append(self._identity.digest())
            if self.signatures:
                self.signatures.end()
        self.empty += not document.had_any
        self.emptied += (document.had_any and not document.characters) or (
            document.had_visible and not document.has_visible
        )
        self.document = None


def _chunk(number: int) -> str:
    return f"chunk-{number:05d}.parquet"


def _measures(number: int) -> str:
    return f"chunk-{number:05d}.npz"
