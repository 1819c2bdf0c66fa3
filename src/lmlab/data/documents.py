"""Documents in Parquet, as `download` leaves them: how they are stored, and reading them back as a
stream.

One file a split. A row is a part of a document of at most PART_CHARACTERS, cut at a line's end, so
that no step ever needs more than a part in memory; part 0 begins a document.
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
    """Stream (document, part, text) from one split's file. Raises UserError when it is missing or
    damaged.
    """
    with readable(path):
        yield from read_rows(checked(path, made_by="download"), ["document", "part", "text"])


def read_rows(path: Path, columns: list[str]) -> Iterator[tuple[Any, ...]]:
    """Stream these columns of every row; what is held is a part of one row group, however large the
    rows are.
    """
    file = pq.ParquetFile(path)
    for group in range(file.num_row_groups):  # a batch may not reach into the next: parts are large
        for batch in file.iter_batches(batch_size=1024, row_groups=[group], columns=columns):
            yield from zip(*(column.to_pylist() for column in batch.columns), strict=True)


@contextmanager
def readable(path: Path) -> Iterator[None]:
    """Whatever goes wrong with reading `path` in this block becomes a UserError that says how to
    make it again.
    """
    try:
        yield
    except FileNotFoundError:
        raise missing(path, made_by="download") from None
    except (pa.ArrowException, OSError):
        raise UserError(
            f"{path} is damaged; run `dvc repro --force download` to make it again"
        ) from None
