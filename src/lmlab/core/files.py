"""Files that are written whole or not at all, each with a hash that is checked when it is read.

A process killed while writing leaves the old files as they were. A folder that a stage writes holds
SHA256SUMS, in the format of `sha256sum --check`; whatever is read back from the folder is checked
against it.
"""

import hashlib
import json
import os
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError

from lmlab.core.errors import UserError

SUMS = "SHA256SUMS"


@contextmanager
def whole_folder(folder: Path, sums: bool = True) -> Iterator[Path]:
    """Yield an empty folder to fill; it replaces `folder` when the block ends without an error.

    Its SHA256SUMS is written too, unless `sums` is False: what Git keeps needs none.
    """
    check_folder(folder)
    partial = folder.with_name(f".{folder.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    with _told_of(folder, partial):
        partial.mkdir(parents=True)
        try:
            yield partial
            if sums:
                write_sums(partial)
        except BaseException:
            shutil.rmtree(partial, ignore_errors=True)
            raise
        if folder.is_symlink():  # the link is removed, not the folder it leads to
            folder.unlink()
        shutil.rmtree(folder, ignore_errors=True)
        os.replace(partial, folder)


@contextmanager
def _told_of(path: Path, partial: Path) -> Iterator[None]:
    """An OSError raised inside about `partial`, or about a file in it, is told of `path` instead:
    what the user named.
    """
    try:
        yield
    except OSError as error:
        if isinstance(error.filename, str | bytes | os.PathLike):
            about = Path(os.fsdecode(error.filename))
            if about.is_relative_to(partial):
                error.filename = str(path / about.relative_to(partial))
        raise


def output(path: Path, suffix: str) -> Path:
    """The file to write to for a path that the user named: a link's target, otherwise the path.

    Raises UserError where no file can be written, and where an existing file has another suffix
    than `suffix`: overwriting it would probably be a slip.
    """
    _check_place(path)
    if path.exists() and path.suffix.lower() != suffix:
        raise UserError(f"{path} exists and is no {suffix} file; move it away or name another")
    return Path(os.path.realpath(path))


def _check_place(path: Path) -> None:
    """Raise UserError where no file can stand at `path`."""
    if not path.name or path.is_dir():
        raise UserError(f"{path} is a folder; name a file")
    if path.exists() and not path.is_file():
        raise UserError(f"{path} is a device or a pipe, not a file; name another file")
    check_folder(Path(os.path.realpath(path)).parent)


def check_folder(folder: Path) -> None:
    """Raise UserError where `folder`, or a folder above it, is something other than a folder."""
    for path in (folder, *folder.parents):
        if path.is_dir():
            return
        if os.path.lexists(path):
            raise UserError(
                f"{path} is a file, or a link to nowhere, where a folder should be; move it away"
            )


def missing(path: Path, made_by: str) -> UserError:
    """The error for a missing file that the stage `made_by` should have written."""
    if Path("dvc.yaml").is_file():
        return UserError(f"{path} is missing; run `dvc repro {made_by}` to make it")
    tops = [folder for folder in Path.cwd().parents if (folder / "dvc.yaml").is_file()]
    top = f", {tops[0]}," if tops else ""
    return UserError(
        f"{path} is missing; run `dvc repro {made_by}` to make it. Run it, like all of lmlab,"
        f" in the project's top folder{top} which this is not: it has no dvc.yaml"
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
    # the process's number, since two processes may write the same file
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    with _told_of(path, partial):
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
        names = [path.name for path in folder.iterdir() if path.is_file() and path.name != SUMS]
    lines = [f"{sha256(folder / name)}  {name}\n" for name in sorted(names)]
    with whole_file(folder / SUMS) as partial:
        partial.write_text("".join(lines), encoding="utf-8")


def vouched(path: Path, made_by: str) -> Path:
    """`checked` where the file's folder has SHA256SUMS; elsewhere the path, unchecked."""
    if path.is_file() and os.path.lexists(path.with_name(SUMS)):
        return checked(path, made_by)
    return path


def checked(path: Path, made_by: str) -> Path:
    """The path, if the file has the hash that its folder's SHA256SUMS records.

    Raises UserError where the file or its line is missing, or its bytes differ; the message names
    the stage `made_by` as the one to run.
    """
    if not path.is_file():
        raise missing(path, made_by)
    sums = path.with_name(SUMS)
    if not sums.is_file():
        raise UserError(
            f"{sums}, which vouches for {path.name}, is missing; run `dvc repro --force {made_by}`"
        )
    recorded = _recorded_hash(sums, path.name)
    state = path.stat()
    if recorded != _sha256_once(path, state.st_size, state.st_mtime_ns):
        raise UserError(
            f"{path} is damaged; run `dvc repro --force {made_by}` to make it again (its hash is"
            f" not the one that {sums.name} beside it records)"
        )
    return path


def _recorded_hash(sums: Path, name: str) -> str | None:
    """The hash that a SHA256SUMS holds for a file; None where it has no line for it."""
    hashes = {}
    for line in sums.read_text(encoding="utf-8", errors="replace").splitlines():
        digest, separator, file_name = line.partition("  ")
        if separator:
            hashes[file_name] = digest
    return hashes.get(name)


def write_json(path: Path, value: Any) -> None:
    """Write `value` as JSON that a person can read; the same value always gives the same bytes."""
    with whole_file(path) as partial:
        partial.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def read_json(path: Path, made_by: str) -> Any:
    """Read a JSON file and check it against its folder's SHA256SUMS and its seal, where it has
    them; the seal is left out.

    Raises UserError where it is missing or damaged; the message names the stage `made_by` as the
    one to run.
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
            f"{path} is damaged: its contents changed after it was written; run `dvc repro --force"
            f" {made_by}` to make it again"
        )
    return _without_seal(value)


SEAL = "sha256_of_the_rest"


def seal(value: dict[str, Any]) -> dict[str, Any]:
    """`value` with a hash of itself under SEAL, for a JSON file that has no folder of its own."""
    return {**value, SEAL: _hash_of(value)}


def is_sealed(value: Any) -> bool:
    """Whether a value is unchanged since `seal` returned it."""
    return isinstance(value, dict) and value.get(SEAL) == _hash_of(_without_seal(value))


def _without_seal(value: dict[str, Any]) -> dict[str, Any]:
    return {key: inner for key, inner in value.items() if key != SEAL}


def _hash_of(value: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


class Record(BaseModel):
    """Base of the typed records that stages write as JSON and read back: frozen, strict, without
    unknown keys.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, protected_namespaces=())

    def record(self) -> dict[str, Any]:
        """The record as plain values for `write_json`, its keys in the order of the fields."""
        return self.model_dump()


RecordT = TypeVar("RecordT", bound=Record)


def read_record(path: Path, kind: type[RecordT], made_by: str) -> RecordT:
    """Read what `record` gave. Raises UserError as `read_json` does, and where keys or types are
    wrong.
    """
    value = read_json(path, made_by)
    try:
        return kind.model_validate(value)
    except ValidationError:
        raise UserError(
            f"{path} is damaged; run `dvc repro --force {made_by}` to make it again"
        ) from None


@cache
def _sha256_once(path: Path, size: int, changed: int) -> str:
    """`sha256`, cached for a file that a process reads repeatedly."""
    return sha256(path)


def sha256(path: Path) -> str:
    """The file's SHA-256 in hexadecimal."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
