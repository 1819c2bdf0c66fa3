"""The folder of an export: written whole or not at all, and in place of an earlier export only."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from lmlab.core.errors import UserError
from lmlab.core.files import whole_folder, write_json

RECORD = "lmlab.json"
"""In every export: its format, and the run that it is."""


@contextmanager
def export_folder(out: Path, record: dict[str, Any]) -> Iterator[Path]:
    """Yield an empty folder to fill, which becomes `out`; RECORD is written as well.

    Raises UserError where `out` is a folder with something in it that is no export.
    """
    check(out)
    with whole_folder(out) as partial:
        yield partial
        write_json(partial / RECORD, record)


def check(out: Path) -> None:
    """Raise UserError where `out` is a folder with something in it that is no export."""
    if out.is_dir() and any(out.iterdir()) and not (out / RECORD).is_file():
        raise UserError(
            f"--out: {out} holds something else than an earlier export; name a new folder"
        )
