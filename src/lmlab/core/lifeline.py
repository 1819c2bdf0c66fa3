"""A process that stops when whoever started it is gone, so that a killed `dvc repro` leaves nothing
running.

Being killed at any moment is safe for everything here, so the stop is immediate.
"""

import os
import sys
import threading
import time

import psutil

SECONDS_BETWEEN_LOOKS = 0.5
SHELLS = {"sh", "bash", "dash", "zsh", "fish", "ksh", "busybox"}


def stop_with_parent() -> None:
    """Watch the parent, and behind a shell that only waits for us its parent too; exit when one of
    them is gone.
    """
    watched: list[psutil.Process] = []
    for ancestor in psutil.Process().parents():
        watched.append(ancestor)
        if ancestor.name() not in SHELLS:
            break
    threading.Thread(
        target=_watch, args=(watched, os.getppid()), daemon=True, name="lifeline"
    ).start()


def _watch(watched: list[psutil.Process], parent: int) -> None:
    while os.getppid() == parent and all(_lives(ancestor) for ancestor in watched):
        time.sleep(SECONDS_BETWEEN_LOOKS)
    # there may be nobody left to read this
    try:
        print(
            "stopped: the process that started this one is gone; run it again to go on",
            file=sys.stderr,
            flush=True,
        )
    finally:
        os._exit(130)


def _lives(process: psutil.Process) -> bool:
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False
