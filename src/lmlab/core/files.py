"""Files that are there whole or not at all, each with a hash that is checked when it is read.

A process killed while writing leaves the old files as they were. A folder that a stage writes holds
SHA256SUMS, in the form that `sha256sum --check` reads; whatever is read back from the folder is
held against it.
"""

import hashlib
import json
import os
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

from lmlab.core.errors import UserError

SUMS = "SHA256SUMS"


@contextmanager
def whole_folder(folder: Path, sums: bool = True) -> Iterator[Path]:
    """Yield an empty folder to fill; with its SHA256SUMS it takes the place of `folder` when the
    block ends well.

    Without `sums` for what Git keeps, which needs none.
    """
    check_folder(folder)
    partial = folder.with_name(f".{folder.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    try:
        yield partial
        if sums:
            write_sums(partial)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise
    if folder.is_symlink():  # what it leads to is left as it is
        folder.unlink()
    shutil.rmtree(folder, ignore_errors=True)
    os.replace(partial, folder)


def output(path: Path, suffix: str) -> Path:
    """The file to write where a person has named one: what a link leads to, otherwise the path
    itself.

    Raises UserError where none can be written, and where one stands whose name ends in another
    suffix: by a slip, it seems.
    """
    _check_place(path)
    if path.exists() and path.suffix.lower() != suffix:
        raise UserError(
            f"{path} is there already and no {suffix} file; move it away or name another"
        )
    return Path(os.path.realpath(path))


def _check_place(path: Path) -> None:
    if not path.name or path.is_dir():
        raise UserError(f"{path} is a folder; name a file")
    if path.exists() and not path.is_file():
        raise UserError(
            f"{path} is neither a file nor free, but a device or a pipe; name another file"
        )
    check_folder(Path(os.path.realpath(path)).parent)


def check_folder(folder: Path) -> None:
    """Raise UserError where something that is no folder stands in the place of one, or of one above
    it.
    """
    for path in (folder, *folder.parents):
        if path.is_dir():
            return
        if os.path.lexists(path):
            raise UserError(
                f"{path} is a file, or a link to nowhere, where a folder should be; move it away"
            )


def missing(path: Path, made_by: str) -> UserError:
    """What to say of a file that the stage `made_by` should have written."""
    if Path("dvc.yaml").is_file():
        return UserError(f"{path} is missing; run `dvc repro {made_by}` to make it")
    tops = [folder for folder in Path.cwd().parents if (folder / "dvc.yaml").is_file()]
    top = f", {tops[0]}," if tops else ""
    return UserError(
        f"{path} is missing; run `dvc repro {made_by}` to make it, and all of lmlab, in the"
        f" project's top folder{top} which"
        " this is not: it has no dvc.yaml"
    )


@contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """Yield a path to write to; it becomes `path` only when the block ends without an error, and
    survives a power cut.

    A link at `path` is replaced: it may lead into DVC's cache. Raises UserError where no file can
    stand.
    """
    _check_place(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(
        f".{path.name}.{os.getpid()}.partial"
    )  # two processes may write the same file
    try:
        yield partial
        with open(partial, "rb+") as file:
            os.fsync(file.fileno())
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def write_sums(folder: Path, names: Iterable[str] | None = None) -> None:
    """Write the folder's SHA256SUMS: a line for every file in it, or for those named."""
    if names is None:
        names = (path.name for path in folder.iterdir() if path.is_file() and path.name != SUMS)
    lines = [f"{sha256(folder / name)}  {name}\n" for name in sorted(names)]
    with whole_file(folder / SUMS) as partial:
        partial.write_text("".join(lines), encoding="utf-8")


def vouched(path: Path, made_by: str) -> Path:
    """`checked` where the file's folder has SHA256SUMS; elsewhere the path as it is."""
    return (
        checked(path, made_by) if path.is_file() and os.path.lexists(path.with_name(SUMS)) else path
    )


def checked(path: Path, made_by: str) -> Path:
    """The path, if the file is what its folder's SHA256SUMS says.

    Raises UserError where the file or its line is missing, or its bytes are others; `made_by` names
    the stage to run then.
    """
    if not path.is_file():
        raise missing(path, made_by)
    sums = path.with_name(SUMS)
    if not sums.is_file():
        raise UserError(
            f"{sums}, which vouches for {path.name}, is missing; run `dvc repro --force {made_by}`"
        )
    lines = (
        line.split("  ", 1)
        for line in sums.read_text(encoding="utf-8", errors="replace").splitlines()
    )
    known = {line[1]: line[0] for line in lines if len(line) == 2}
    state = path.stat()
    if known.get(path.name) != _sha256_once(path, state.st_size, state.st_mtime_ns):
        raise UserError(
            f"{path} is damaged; run `dvc repro --force {made_by}` to make it again (its bytes"
            " are not those that"
            f" {sums.name} beside it vouches for)"
        )
    return path


def write_json(path: Path, value: Any) -> None:
    """Write `value` so that the same value gives the same bytes and a person can read them."""
    with whole_file(path) as partial:
        partial.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def read_json(path: Path, made_by: str) -> Any:
    """Read a JSON file, checked where its folder has SHA256SUMS and where it is sealed; the seal is
    left out.

    `made_by` names the stage to run when it is no good, for the UserError that is raised then.
    """
    vouched(path, made_by)
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise missing(path, made_by) from None
    except (IsADirectoryError, NotADirectoryError):
        raise UserError(
            f"{path} should be a file in a folder, but is not; move what is there, run `dvc repro"
            f" {made_by}`"
        ) from None
    except (json.JSONDecodeError, UnicodeDecodeError, RecursionError) as error:
        raise UserError(
            f"{path} is damaged ({error}); run `dvc repro --force {made_by}` to make it again"
        ) from None
    if not (isinstance(value, dict) and SEAL in value):
        return value
    if not is_sealed(value):
        raise UserError(
            f"{path} is damaged: it is not what was written; run `dvc repro --force {made_by}` to"
            " make it again"
        )
    return {key: inner for key, inner in value.items() if key != SEAL}


SEAL = "sha256_of_the_rest"


def seal(value: dict[str, Any]) -> dict[str, Any]:
    """The same with a hash of itself under SEAL, for a JSON file that has no folder of its own."""
    return {**value, SEAL: _hash_of(value)}


def is_sealed(value: Any) -> bool:
    """Whether a value is what `seal` gave."""
    return isinstance(value, dict) and value.get(SEAL) == _hash_of(
        {key: value[key] for key in value if key != SEAL}
    )


def _hash_of(value: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


@cache
def _sha256_once(path: Path, size: int, changed: int) -> str:
    """`sha256`, for a file that a process reads again and again."""
    return sha256(path)


def sha256(path: Path) -> str:
    """The file's SHA-256 in hexadecimal."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
