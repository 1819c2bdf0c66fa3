"""Stop this process when its parent is gone, so that a killed `dvc repro` leaves nothing running.

Everything in lmlab may be killed at any moment, so it stops at once.
"""

import os
import sys
import threading
import time

import psutil

SECONDS_BETWEEN_CHECKS = 0.5
SHELLS = {"sh", "bash", "dash", "zsh", "fish", "ksh", "busybox"}
"""Programs that start a command and only wait for it."""


def stop_with_parent() -> None:
    """Watch the parent, and where that is a shell its own parent too; exit when one of them is
    gone.
    """
    watched: list[psutil.Process] = []
    for ancestor in psutil.Process().parents():
        watched.append(ancestor)
        if ancestor.name() not in SHELLS:
            break
    arguments = (watched, os.getppid())
    thread = threading.Thread(target=_watch, args=arguments, daemon=True, name="lifeline")
    thread.start()


def _watch(watched: list[psutil.Process], parent: int) -> None:
    while os.getppid() == parent and all(map(_is_alive, watched)):
        time.sleep(SECONDS_BETWEEN_CHECKS)
    try:  # to print: nobody may be left to read it
        print(
            "stopped: the process that started this one is gone; run it again to resume",
            file=sys.stderr,
            flush=True,
        )
    finally:
        os._exit(130)


def _is_alive(process: psutil.Process) -> bool:
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False
