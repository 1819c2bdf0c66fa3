"""Files that stages wrote, read from DVC's cache by the hashes in a run's dvc.lock."""

import json
import os
import shutil
from functools import cache
from pathlib import Path

from lmlab.core.errors import UserError
from lmlab.experiments.compare.lock import md5_of, read_stages


def read(root: Path, lock: bytes | None, path: str) -> bytes | None:
    """A file that a stage wrote, alone or in a folder; None where the cache does not have it.

    `lock` is the run's dvc.lock. Raises UserError where the cache holds the file damaged.
    """
    if lock is None:
        return None
    outs: dict[str, str] = {}
    for stage in read_stages(lock.decode()).values():
        outs |= stage.writes
    for out, md5 in outs.items():
        if path == out:
            return _read_object(root, md5)
        if path.startswith(f"{out}/"):
            listing = _read_object(root, md5)
            if listing:
                hashes = {entry["relpath"]: entry["md5"] for entry in json.loads(listing)}
                return _read_object(root, hashes.get(path.removeprefix(f"{out}/"), ""))
    return None


def files(root: Path, lock: bytes, out: str) -> dict[str, Path]:
    """The files of a folder that a stage wrote, by their names in it, each where the cache has it
    or would have it; empty where the lock has no such folder, or the cache not its listing.
    """
    md5 = _hash_of(lock, out)
    listing = _read_object(root, md5) if md5 else None
    entries = json.loads(listing) if listing else []
    cache = cache_folder(root.resolve())
    return {entry["relpath"]: _place(cache, entry["md5"]) for entry in entries}


def objects(root: Path, lock: bytes, out: str) -> list[Path]:
    """All that the cache holds of a folder that a stage wrote: its listing and its files."""
    md5 = _hash_of(lock, out)
    listing = [place(root, md5)] if md5 else []
    return [*listing, *files(root, lock, out).values()]


def _hash_of(lock: bytes, out: str) -> str | None:
    for stage in read_stages(lock.decode()).values():
        if out in stage.writes:
            return stage.writes[out]
    return None


def place(root: Path, md5: str) -> Path:
    """Where the cache keeps what has this hash."""
    return _place(cache_folder(root.resolve()), md5)


def put(source: Path, target: Path) -> None:
    """Copy a file to its place in a cache, whole or not at all, unless it is there."""
    if target.exists():
        return
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = target.with_name(f".{target.name}.{os.getpid()}")
    shutil.copyfile(source, partial)
    os.replace(partial, target)


def _place(cache: Path, md5: str) -> Path:
    return cache / md5[:2] / md5[2:]


def _read_object(root: Path, md5: str) -> bytes | None:
    file = place(root, md5)
    content = file.read_bytes() if file.is_file() else None
    if content is not None and md5_of(content) != md5.removesuffix(".dir"):
        raise UserError(
            f"{file} in DVC's cache is damaged; delete it and run `dvc pull`, or `dvc repro` at"
            " that commit"
        )
    return content


@cache
def cache_folder(root: Path) -> Path:
    """Where DVC keeps files by their MD5, according to its own settings."""
    from dvc.repo import Repo

    with Repo(str(root)) as repository:
        return Path(repository.cache.local.path)
