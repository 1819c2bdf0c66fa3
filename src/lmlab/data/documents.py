"""Documents in Parquet, as `download` writes them: their format, and reading them as a stream.

There is one file per split. A row is a part of a document, at most PART_CHARACTERS long and cut at
the end of a line, so that no step needs more than a part in memory; part 0 begins a document.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from lmlab.core.errors import UserError
from lmlab.core.files import checked, missing

SPLITS = ("train", "validation", "test")
PART_CHARACTERS = 1 << 20
ROW_GROUP_BYTES = 4 << 20
SCHEMA = pa.schema(
    [
        ("document", pa.int64()),
        ("part", pa.int32()),
        ("name", pa.string()),
        ("text", pa.large_string()),
    ]
)


def read_parts(path: Path) -> Iterator[tuple[int, int, str]]:
    """Stream (document, part, text) from a split's file. Raises UserError where it is missing or
    damaged.
    """
    with readable(path):
        yield from read_rows(checked(path, made_by="download"), ["document", "part", "text"])


def read_texts(path: Path) -> Iterator[str]:
    """Stream the text of the parts from a split's file. Raises UserError as `read_parts` does."""
    for _, _, text in read_parts(path):
        yield text


def read_rows(path: Path, columns: list[str]) -> Iterator[tuple[Any, ...]]:
    """Stream some columns of every row; no more than one row group is in memory."""
    file = pq.ParquetFile(path)
    for group in range(file.num_row_groups):  # else a batch spans several, and rows are large
        for batch in file.iter_batches(batch_size=1024, row_groups=[group], columns=columns):
            yield from zip(*(column.to_pylist() for column in batch.columns), strict=True)


@contextmanager
def readable(path: Path) -> Iterator[None]:
    """Turn any failure to read `path` in this block into a UserError that says how to make it
    again.
    """
    try:
        yield
    except FileNotFoundError:
        raise missing(path, made_by="download") from None
    except (pa.ArrowException, OSError):
        raise UserError(
            f"{path} is damaged; run `dvc repro --force download` to make it again"
        ) from None


class RowWriter:
    """Writes documents to Parquet in row groups of about ROW_GROUP_BYTES of text."""

    def __init__(self, path: Path) -> None:
        self._writer = pq.ParquetWriter(path, SCHEMA, compression="zstd")
        self._rows: list[tuple[int, int, str, str]] = []
        self._characters = 0  # of the rows not yet written

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
