"""Folders for work that may be stopped: what is done is kept there until all is.

Such a folder lies in .scratch, outside the outputs of stages, which DVC deletes before a stage
starts, and is named by a hash of what decides the work: other work does not find it.
"""

import fcntl
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

LOCK = "lock"
"""A file in the folder, since not every file system can lock a folder."""


def scratch_folder(name: str) -> Path:
    """The folder of that name in .scratch.

    In the project itself also for an experiment that runs in a copy of it: DVC_ROOT, set by DVC, is
    the project's own folder.
    """
    return Path(os.environ.get("DVC_ROOT", ".")) / ".scratch" / name


@contextmanager
def alone(folder: Path, on_wait: Callable[[], None]) -> Iterator[None]:
    """Inside, the folder is there and no other process is at work in it.

    Where one is, `on_wait` is called once and this process waits. The lock ends with the process
    that holds it, however that ends.
    """
    has_waited = False
    while True:
        folder.mkdir(parents=True, exist_ok=True)
        try:
            lock = open(folder / LOCK, "a", encoding="utf-8")  # noqa: SIM115 (closed below)
        except FileNotFoundError:  # the process before this one has just deleted the folder
            continue
        with lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                if not has_waited:
                    on_wait()
                    has_waited = True
                fcntl.flock(lock, fcntl.LOCK_EX)
            if not _is_at(folder / LOCK, lock):
                continue
            yield
            return


def _is_at(path: Path, file: IO[str]) -> bool:
    """Whether the file at a path is this open file, not a later one of the same name."""
    try:
        return os.path.samestat(os.fstat(file.fileno()), path.stat())
    except FileNotFoundError:
        return False
