"""Waiting for DVC's queue, with something to see: how many experiments are done, and which run."""

import time
from collections.abc import Callable
from dataclasses import dataclass

from lmlab.core.errors import UserError
from lmlab.core.progress import ProgressBar

SECONDS_BETWEEN_LOOKS = 3.0
PATIENCE = 60.0
"""Seconds in which queued experiments may wait without one that runs: a worker takes some to
start.
"""


@dataclass(frozen=True)
class Books:
    """The state of DVC's queue."""

    queued: int
    running: tuple[str, ...]
    """Names."""
    finished: int
    failed: tuple[str, ...]
    """Names."""

    @property
    def left(self) -> int:
        return self.queued + len(self.running)


def books() -> Books:
    """DVC's own books of its queue. Raises UserError where they cannot be read."""
    from dvc.exceptions import DvcException
    from dvc.repo import Repo

    try:
        with Repo() as repository:
            queue = repository.experiments.celery_queue
            active = list(queue.iter_active())
            failed = [entry for entry, _ in queue.iter_failed()]
            return Books(
                queued=len(list(queue.iter_queued())),
                running=tuple(entry.name or entry.stash_rev[:7] for entry in active),
                finished=len(list(queue.iter_success())),
                failed=tuple(entry.name or entry.stash_rev[:7] for entry in failed),
            )
    except DvcException as error:
        raise UserError(f"DVC's queue cannot be read: {' '.join(str(error).split())}") from None


def wait(
    look: Callable[[], Books] = books, seconds_between_looks: float = SECONDS_BETWEEN_LOOKS
) -> tuple[Books, Books]:
    """Wait until nothing is queued or running, with a bar; the books before and after.

    Raises UserError where experiments are queued and nothing has worked at them for PATIENCE
    seconds.
    """
    before = now = look()
    last_at_work = time.monotonic()
    done_before = before.finished + len(before.failed)
    with ProgressBar("queue", before.left, "experiments") as bar:
        while now.left:
            if now.running:
                last_at_work = time.monotonic()
            elif time.monotonic() - last_at_work > PATIENCE:
                raise UserError(
                    f"{now.queued} experiments are queued and nothing works at them; run"
                    " `dvc queue start`, then `lmlab wait`"
                )
            time.sleep(seconds_between_looks)
            now = look()
            done = now.finished + len(now.failed) - done_before
            bar.advance(done - bar.done, ", ".join(now.running))
    return before, now


def summary(before: Books, after: Books) -> str:
    """What came of the experiments that were waited for."""
    if not before.left:
        return "nothing is queued or running"
    finished = after.finished - before.finished
    failed = [name for name in after.failed if name not in before.failed]
    line = f"{finished} experiments finished"
    if failed:
        line += f", {len(failed)} failed ({', '.join(failed[:5])}); see `dvc queue logs NAME`"
    return f"{line}; compare them with `lmlab compare`"
