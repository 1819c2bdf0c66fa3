"""The folder of an export: written whole or not at all, and in place of an earlier export only."""

import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from lmlab.core.errors import UserError
from lmlab.core.files import SUMS, whole_folder, write_json

RECORD = "lmlab.json"
"""In every export: its format, and the run that it is."""
FILES = "files"
"""In the record: what an export wrote beside it, so that nothing else is taken away with it."""


@contextmanager
def export_folder(out: Path, record: dict[str, Any]) -> Iterator[Path]:
    """Yield an empty folder to fill, which becomes `out`; RECORD is written as well.

    Raises UserError as `check` does, before and behind the block.
    """
    target = Path(os.path.realpath(out))  # a link stays a link
    check(target)
    own = target.with_name(f".{target.name}.{os.getpid()}")  # two may be at it at once
    try:
        with whole_folder(own) as partial:
            yield partial
            files = sorted(_files(partial))
            write_json(partial / RECORD, {**record, FILES: files})
            usual = (partial / RECORD).stat().st_mode
            for file in files:  # safetensors are written for their owner alone
                (partial / file).chmod(usual)
        check(target)
        shutil.rmtree(target, ignore_errors=True)
        os.replace(own, target)
    finally:
        shutil.rmtree(own, ignore_errors=True)


def check(out: Path) -> None:
    """Raise UserError where `out` is a folder with anything in it that an export did not write."""
    out = Path(os.path.realpath(out))
    if not out.is_dir():
        return
    others = sorted(_files(out) - _written(out))
    if others:
        more = f" and {len(others) - 1} more" if len(others) > 1 else ""
        raise UserError(
            f"--out: {out} holds what no export wrote ({others[0]}{more}), which would be lost;"
            " move it away, or name a new folder"
        )


def _files(folder: Path) -> set[str]:
    """All files below a folder, by their paths in it."""
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if not path.is_dir()}


def _written(folder: Path) -> set[str]:
    """The files that an earlier export wrote."""
    try:
        files = json.loads((folder / RECORD).read_text(encoding="utf-8"))[FILES]
    except (OSError, ValueError, LookupError, TypeError):
        return set()
    return {*map(str, files), RECORD, SUMS}
