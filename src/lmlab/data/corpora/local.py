"""Your own text: local .txt, .md, .jsonl or .parquet files, named one by one, by a folder or by a
glob.

Files below `texts/` are watched by DVC: edit one and `dvc repro` reads it again. Files elsewhere
are read but not watched; after editing them run `dvc repro --force download`.
"""

import glob
import json
import os
from collections import Counter
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from lmlab.core.errors import UserError
from lmlab.core.files import sha256
from lmlab.core.params import Params
from lmlab.core.progress import ProgressBar
from lmlab.data import columns, globs, text_files
from lmlab.data.columns import Missing
from lmlab.data.corpora.base import PIECE_CHARACTERS, Corpus, Document
from lmlab.data.globs import shown

SUFFIXES = (".txt", ".txt.gz", ".md", ".md.gz", ".jsonl", ".jsonl.gz", ".parquet")
KEY = "corpora.local.files"
OWN_NOTE = Path("texts/README.md")
"""The project's own note on the folder texts/, which is nobody's text to learn from."""
ROWS_AT_ONCE = 256
NO_ROW = "files without a row"


class Options(Params):
    """Options of the corpus."""

    files: str | list[str]
    column: str
    skip_missing: bool


class Local(Corpus):
    """One document a text file, a line of JSONL (its key `column`), or a row of Parquet (its column
    `column`).
    """

    licence = "yours to know"

    def __init__(self, options: Options, key: str = KEY) -> None:
        self.patterns = [options.files] if isinstance(options.files, str) else options.files
        self.column, self.skip_missing = options.column, options.skip_missing
        self.key = key
        """What the files were named by, to be told in errors."""
        self.source = f"local files {', '.join(self.patterns)}"
        self.skipped: Counter[str] = Counter()
        """Rows without text that were left out when the documents were last read, by reason."""

    def documents(self) -> Iterator[Document]:
        self.skipped.clear()
        for path in self._matches.files:
            name = path.name.lower()
            if name.endswith(".parquet"):
                yield from self._parquet(path)
            elif name.endswith((".jsonl", ".jsonl.gz")):
                yield from self._jsonl(path)
            else:
                yield Document(_stem(path), _pieces(path))

    def facts(self) -> dict[str, Any]:
        """The files with their hashes, and what was passed over on the way from the patterns to the
        documents.
        """
        hashes = []
        with ProgressBar("download: hashing", len(self._matches.files), "files") as bar:
            for path in self._matches.files:
                try:
                    hashes.append({"path": shown(path), "sha256": sha256(path)})
                except OSError as error:
                    raise UserError(f"{shown(path)} cannot be read: {error.strerror}") from None
                bar.advance(1)
        return {"files": hashes, "left_out": {**self._matches.passed_over, **+self.skipped}}

    @cached_property
    def _matches(self) -> globs.Matches:
        files, passed_over = globs.find(self.patterns, SUFFIXES, self.key)
        texts = [path for path in files if not _is_own_note(path)]
        passed_over[f"{OWN_NOTE}, which is the project's own"] += len(files) - len(texts)
        if (nowhere := list(filter(_leads_nowhere, self.patterns))) or not texts:
            patterns = ", ".join(map(repr, nowhere or self.patterns)) or "an empty list"
            del passed_over[globs.NO_MATCH]  # which is what is said
            instead = "".join(f"; {what}: {count:,}" for what, count in (+passed_over).items())
            raise UserError(
                f"{'params.yaml: ' * (self.key == KEY)}{self.key}: no file matches {patterns} below"
                f" {shown(Path.cwd())}{instead}"
                + " (a --queue or --temp experiment sees only files that Git knows, or absolute"
                " paths)" * (self.key == KEY)
            )
        return globs.Matches(texts, +passed_over)

    def _jsonl(self, path: Path) -> Iterator[Document]:
        name, stem, rows = shown(path), _stem(path), 0
        with text_files.opened(path, newline=None) as lines:
            for number, line in enumerate(lines, start=1):
                if not line.strip():
                    continue
                rows += 1
                where = f"{name}, line {number}"
                row = _parsed(line, path, where)
                text = self._text_or_none(columns.text_of_row(row, self.column), where)
                if text is not None:
                    yield Document(f"{stem}-{number}", [text])
        self.skipped[NO_ROW] += not rows

    def _parquet(self, path: Path) -> Iterator[Document]:
        name, stem, number = shown(path), _stem(path), 0
        for number, value in enumerate(_values_in_parquet(path, self.column), start=1):
            where = f"{name}, row {number}"
            try:
                text_or_reason = columns.text_of_value(value, self.column)
            except UnicodeDecodeError as error:
                bad = f"byte {error.object[error.start]:#04x}"
                raise UserError(
                    f"{where}: {self.column!r} is not UTF-8 ({bad}); write the file again in UTF-8"
                ) from None
            text = self._text_or_none(text_or_reason, where)
            if text is not None:
                yield Document(f"{stem}-{number}", [text])
        self.skipped[NO_ROW] += not number

    def _text_or_none(self, text: str | Missing, where: str) -> str | None:
        """A row's text; None where it has none and is left out, which is counted. Raises UserError
        where it may not be.
        """
        if isinstance(text, str):
            return text
        if not self.skip_missing:
            raise UserError(
                f"{where}: {text.message}; to leave out rows without text set"
                " corpora.local.skip_missing: true"
            )
        self.skipped[f"rows without text ({text.reason})"] += 1
        return None


def _parsed(line: str, path: Path, where: str) -> Any:
    """A line of JSON. Whole numbers become floats: no number is read here, and Python refuses those
    of many digits.
    """
    try:
        return json.loads(line.lstrip("\ufeff"), parse_int=float, object_pairs_hook=_each_key_once)
    except _TwiceError as twice:
        raise UserError(
            f"{where}: the key {twice.args[0]!r} stands twice, and one of the two would be lost"
        ) from None
    except RecursionError:
        raise UserError(
            f"{where}: nested too deeply to be read; a JSON object a line is expected"
        ) from None
    except ValueError as error:
        text_files.check_zeros(line, path)
        raise UserError(f"{where}: not a JSON object, or one that is cut short ({error})") from None


class _TwiceError(Exception):
    """A key that an object of JSON has more than once."""


def _each_key_once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """The object that the pairs are of. Python itself would keep the last of those with one key,
    silently.
    """
    row = dict(pairs)
    if len(row) < len(pairs):
        keys = [key for key, _ in pairs]
        raise _TwiceError(next(key for key in keys if keys.count(key) > 1))
    return row


def _values_in_parquet(path: Path, column: str) -> Iterator[bytes | None]:
    """A column of text, as bytes. Raises UserError where the file has none of that name or is
    damaged.
    """
    fault = "is not a Parquet file, or damaged"
    rows = 0
    try:
        with pq.ParquetFile(path) as file:
            names = columns.path_to(column, file.schema_arrow, shown(path))
            for batch in file.iter_batches(columns=[".".join(names)], batch_size=ROWS_AT_ONCE):
                yield from columns.text_of_batch(batch, names)
                rows += batch.num_rows
                fault = f"is damaged behind row {rows}"
    except (
        pa.ArrowException,
        OSError,
        UnicodeDecodeError,
    ) as error:  # the last: where the names of its columns are damaged
        if isinstance(error, OSError) and error.errno:
            fault = f"cannot be read: {os.strerror(error.errno)}"
        raise UserError(f"{shown(path)} {fault}") from None


def _pieces(path: Path) -> Iterator[str]:
    with text_files.opened(path, newline="") as file:
        for piece in iter(lambda: file.read(PIECE_CHARACTERS), ""):
            text_files.check_zeros(piece, path)
            yield piece


def _leads_nowhere(pattern: str) -> bool:
    """Whether it names one file or folder that is not there. (A glob may well match nothing beside
    others that do.)
    """
    return (
        bool(pattern)
        and not glob.has_magic(pattern)
        and not os.path.lexists(os.path.expanduser(pattern))
    )


def _is_own_note(path: Path) -> bool:
    return path.name == OWN_NOTE.name and OWN_NOTE.is_file() and path.samefile(OWN_NOTE)


def _stem(path: Path) -> str:
    """The file's name without its suffixes, as its documents are named."""
    suffix = max((suffix for suffix in SUFFIXES if globs.has_suffix(path, [suffix])), key=len)
    return shown(path.name[: -len(suffix)])
