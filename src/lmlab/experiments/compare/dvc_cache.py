"""Files that stages wrote, read from DVC's cache by the hashes in a run's dvc.lock."""

import json
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


def _read_object(root: Path, md5: str) -> bytes | None:
    file = cache_folder(root.resolve()) / md5[:2] / md5[2:]
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
