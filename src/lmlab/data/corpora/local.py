"""Your own text: local .txt, .md, .jsonl or .parquet files, named by path, folder or glob.

DVC tracks files below `texts/`: edit one and `dvc repro` reads it again. Files elsewhere are not
tracked; after editing one run `dvc repro --force download`.
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

from lmlab.core.errors import UserError, printable
from lmlab.core.files import sha256
from lmlab.core.params import Params
from lmlab.core.progress import ProgressBar
from lmlab.data import columns, globs, text_files
from lmlab.data.columns import Missing
from lmlab.data.corpora.base import PIECE_CHARACTERS, Corpus, Document

SUFFIXES = (".txt", ".txt.gz", ".md", ".md.gz", ".jsonl", ".jsonl.gz", ".parquet")
KEY = "corpora.local.files"
OWN_NOTE = Path("texts/README.md")
"""The project's own note on the folder texts/, which is not text to train on."""
ROWS_AT_ONCE = 256
NO_ROW = "files without a row"


class Options(Params):
    """Options of the corpus."""

    files: str | list[str]
    column: str
    skip_missing: bool


class Local(Corpus):
    """One document per text file, per line of JSONL (its key `column`) or per row of Parquet (that
    column).
    """

    licence = "yours to know"

    def __init__(self, options: Options, key: str = KEY) -> None:
        self.patterns = [options.files] if isinstance(options.files, str) else options.files
        self.column, self.skip_missing = options.column, options.skip_missing
        self.key = key
        """Where the files were named, for error messages."""
        self.source = f"local files {', '.join(self.patterns)}"
        self.skipped: Counter[str] = Counter()
        """Rows without text left out when the documents were last read, counted by reason."""

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
        """The files with their hashes, and what was left out between the patterns and the
        documents.
        """
        hashes = []
        with ProgressBar("download: hashing", len(self._matches.files), "files") as bar:
            for path in self._matches.files:
                name = printable(path)
                try:
                    hashes.append({"path": name, "sha256": sha256(path)})
                except OSError as error:
                    raise UserError(f"{name} cannot be read: {error.strerror}") from None
                bar.advance(1)
        return {"files": hashes, "left_out": {**self._matches.passed_over, **+self.skipped}}

    @cached_property
    def _matches(self) -> globs.Matches:
        files, passed_over = globs.find(self.patterns, SUFFIXES, self.key)
        texts = [path for path in files if not _is_own_note(path)]
        passed_over[f"{OWN_NOTE}, which is the project's own"] += len(files) - len(texts)
        missing = list(filter(_is_missing, self.patterns))
        if missing or not texts:
            raise self._no_match(missing or self.patterns, passed_over)
        return globs.Matches(texts, +passed_over)

    def _no_match(self, patterns: list[str], passed_over: Counter[str]) -> UserError:
        del passed_over[globs.NO_MATCH]  # the message says that anyway
        named = ", ".join(map(repr, patterns)) or "an empty list"
        reasons = "".join(f"; {reason}: {count:,}" for reason, count in (+passed_over).items())
        message = f"{self.key}: no file matches {named} below {printable(Path.cwd())}{reasons}"
        if self.key != KEY:
            return UserError(message)
        return UserError(
            f"params.yaml: {message} (a --queue or --temp experiment sees only files that Git"
            " knows, or absolute paths)"
        )

    def _jsonl(self, path: Path) -> Iterator[Document]:
        name, stem = printable(path), _stem(path)
        rows = 0
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
        name, stem = printable(path), _stem(path)
        number = 0
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
        """A row's text; None where it has none, which is counted.

        Raises UserError where it has none and rows may not be left out.
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
    """Parse a line of JSON, integers as floats: Python refuses to parse integers of very many
    digits.

    Raises UserError where the line is no JSON or an object in it repeats a key.
    """
    try:
        text = line.lstrip("\ufeff")
        return json.loads(text, parse_int=float, object_pairs_hook=_without_repeated_keys)
    except _RepeatedKeyError as error:
        raise UserError(
            f"{where}: the key {error.key!r} is repeated, and one of its values would be lost"
        ) from None
    except RecursionError:
        raise UserError(
            f"{where}: nested too deeply to be read; a JSON object a line is expected"
        ) from None
    except ValueError as error:
        text_files.check_zeros(line, path)
        raise UserError(f"{where}: not a JSON object, or one that is cut short ({error})") from None


class _RepeatedKeyError(Exception):
    """A JSON object has a key more than once."""

    def __init__(self, key: str) -> None:
        super().__init__(key)
        self.key = key


def _without_repeated_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """The object of these pairs. Python's parser itself would silently keep the last of equal
    keys.
    """
    row = dict(pairs)
    if len(row) < len(pairs):
        keys = [key for key, _ in pairs]
        raise _RepeatedKeyError(next(key for key in keys if keys.count(key) > 1))
    return row


def _values_in_parquet(path: Path, column: str) -> Iterator[bytes | None]:
    """The values of a column of text, as bytes. Raises UserError where the file lacks it or is
    damaged.
    """
    fault = "is not a Parquet file, or damaged"
    rows = 0
    try:
        with pq.ParquetFile(path) as file:
            names = columns.path_to(column, file.schema_arrow, printable(path))
            for batch in file.iter_batches(columns=[".".join(names)], batch_size=ROWS_AT_ONCE):
                yield from columns.text_of_batch(batch, names)
                rows += batch.num_rows
                fault = f"is damaged after row {rows}"
    # UnicodeDecodeError: where the names of the columns are damaged
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        if isinstance(error, OSError) and error.errno:
            fault = f"cannot be read: {os.strerror(error.errno)}"
        raise UserError(f"{printable(path)} {fault}") from None


def _pieces(path: Path) -> Iterator[str]:
    with text_files.opened(path, newline="") as file:
        for piece in iter(lambda: file.read(PIECE_CHARACTERS), ""):
            text_files.check_zeros(piece, path)
            yield piece


def _is_missing(pattern: str) -> bool:
    """Whether it names a single file or folder, which does not exist. (A glob may match nothing
    while others do.)
    """
    if not pattern or glob.has_magic(pattern):
        return False
    return not os.path.lexists(os.path.expanduser(pattern))


def _is_own_note(path: Path) -> bool:
    return path.name == OWN_NOTE.name and OWN_NOTE.is_file() and path.samefile(OWN_NOTE)


def _stem(path: Path) -> str:
    """The file's name without its suffix, from which the names of its documents are made."""
    suffixes = [suffix for suffix in SUFFIXES if globs.has_suffix(path, [suffix])]
    longest = max(suffixes, key=len)
    return printable(path.name[: -len(longest)])
