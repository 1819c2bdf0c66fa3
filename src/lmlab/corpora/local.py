"""Your own text: local .txt, .jsonl or .parquet files given by a glob.

Files below `texts/` are watched by DVC: edit one and `dvc repro` reads it again. Files elsewhere are read but not
watched; after editing them run `dvc repro --force download`.
"""

import glob
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TextIO

import pyarrow as pa
import pyarrow.parquet as pq

from lmlab.corpora.base import PIECE_CHARACTERS, Corpus, Document
from lmlab.errors import UserError
from lmlab.files import sha256
from lmlab.params import Params


class Options(Params):
    """Options of the corpus."""

    files: str
    column: str


class Local(Corpus):
    """One document a text file, a line of JSONL (its key `column`), or a row of Parquet (its column `column`)."""

    licence = "yours to know"

    def __init__(self, options: Options) -> None:
        self.pattern, self.column = options.files, options.column
        self.source = f"local files {self.pattern}"

    def documents(self) -> Iterator[Document]:
        readers = {".txt": self._text, ".jsonl": self._jsonl, ".parquet": self._parquet}
        for path in self._paths():
            if path.suffix.lower() not in readers:
                raise UserError(f"{path}: only .txt, .jsonl and .parquet can be read; narrow corpora.local.files")
            yield from readers[path.suffix.lower()](path)

    def facts(self) -> dict[str, Any]:
        return {"files": [{"path": str(path), "sha256": sha256(path)} for path in self._paths()]}

    def _paths(self) -> list[Path]:
        paths = sorted({Path(match) for match in glob.glob(os.path.expanduser(self.pattern), recursive=True)})
        paths = [path for path in paths if path.is_file() and path.name != "README.md"]
        if not paths:
            raise UserError(
                f"params.yaml: corpora.local.files: no file matches {self.pattern!r} below {Path.cwd()}"
                " (a --queue or --temp experiment sees only files that Git knows, or absolute paths)"
            )
        return paths

    def _text(self, path: Path) -> Iterator[Document]:
        yield Document(path.stem, _pieces(path))

    def _jsonl(self, path: Path) -> Iterator[Document]:
        with _opened(path, newline=None) as lines:
            for number, line in enumerate(lines, start=1):
                if not line.strip():
                    continue
                try:
                    value = json.loads(line)[self.column]
                except (ValueError, KeyError, TypeError):
                    raise UserError(f"{path}, line {number}: not a JSON object with the key {self.column!r}") from None
                if not isinstance(value, str):
                    raise UserError(f"{path}, line {number}: {self.column!r} is not text")
                yield Document(f"{path.stem}-{number}", [value])

    def _parquet(self, path: Path) -> Iterator[Document]:
        try:
            file = pq.ParquetFile(path)
        except (pa.ArrowInvalid, OSError):
            raise UserError(f"{path} is not a Parquet file, or damaged") from None
        if self.column not in file.schema_arrow.names:
            raise UserError(f"{path} has no column {self.column!r}; it has {', '.join(file.schema_arrow.names)}")
        number = 0
        try:
            for batch in file.iter_batches(columns=[self.column], batch_size=256):
                for value in batch.column(0).to_pylist():
                    number += 1
                    if not isinstance(value, str):
                        raise UserError(f"{path}, row {number}: {self.column!r} is not text")
                    yield Document(f"{path.stem}-{number}", [value])
        except (pa.ArrowInvalid, OSError):
            raise UserError(f"{path} is damaged behind row {number}") from None


@contextmanager
def _opened(path: Path, newline: str | None) -> Iterator[TextIO]:
    """A text file without the byte order mark that some editors write. Raises UserError where it is not UTF-8."""
    try:
        with open(path, encoding="utf-8-sig", newline=newline) as file:
            yield file
    except UnicodeDecodeError as error:
        found = f"byte {error.object[error.start]:#04x}"
        raise UserError(f"{path} is not UTF-8 ({found}); convert it, e.g. with `iconv -f latin1 -t utf-8`") from None


def _pieces(path: Path) -> Iterator[str]:
    with _opened(path, newline="") as file:
        yield from iter(lambda: file.read(PIECE_CHARACTERS), "")
