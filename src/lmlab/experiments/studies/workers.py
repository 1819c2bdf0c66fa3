"""Where the runs of a study are done: in this process, side by side in processes of their own, or
by workers that wait at the scheduler of a Dask cluster.

A cluster's worker is a process in a clone of its own, on this machine or another one. It makes a
run only if its code, its versions and its text are the caller's.
"""

import multiprocessing
import signal
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from lmlab.core import lifeline
from lmlab.core.errors import UserError
from lmlab.core.params import Tree
from lmlab.experiments import cluster
from lmlab.experiments.studies import point
from lmlab.experiments.studies.making import differences, making
from lmlab.experiments.studies.point import First
from lmlab.experiments.studies.records import Making


class Task(NamedTuple):
    """A run to be made."""

    tree: Tree
    flops: float
    corpus: Path
    first: First | None


Run = Callable[[Sequence[Task]], Iterator[dict[str, Any]]]
"""Makes runs: what each measured, in their order."""


@contextmanager
def here(processes: int) -> Iterator[Run]:
    """Runs on this machine, up to so many at a time."""

    def run(tasks: Sequence[Task]) -> Iterator[dict[str, Any]]:
        if min(processes, len(tasks)) > 1:
            yield from _side_by_side(tasks, processes)
        else:
            for task in tasks:
                yield point.run_quietly(*task)

    yield run


@contextmanager
def at(address: str) -> Iterator[Run]:
    """Runs by the workers of a Dask cluster, as many at a time as there are.

    A worker that is lost loses its run, which another one makes again. Raises UserError where
    nobody answers at the address or no worker waits there, and, from a run, where a worker is not
    like the caller.
    """
    with cluster.reached(address) as client:

        def run(tasks: Sequence[Task]) -> Iterator[dict[str, Any]]:
            pool = client.get_executor(pure=False)
            for future in [pool.submit(*_checked(task)) for task in tasks]:
                yield cluster.awaited(future, client, address)

        yield run


def _side_by_side(tasks: Sequence[Task], processes: int) -> Iterator[dict[str, Any]]:
    """Some at a time in processes of their own."""
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(processes, context, initializer=lifeline.stop_with_parent) as pool:
        # children inherit that Ctrl-C is ignored: the parent answers it, in one line
        answer = signal.signal(signal.SIGINT, signal.SIG_IGN)
        futures = [pool.submit(point.run_quietly, *task) for task in tasks]
        signal.signal(signal.SIGINT, answer)
        try:
            for future in futures:
                yield future.result()
        except BaseException:
            for worker in multiprocessing.active_children():
                worker.terminate()
            raise


def _checked(task: Task) -> tuple[Any, ...]:
    """The call that makes a run elsewhere."""
    return (run_if_alike, _made(task), *task)


def _made(task: Task) -> Making:
    first = task.first.tree if task.first else None
    return making(task.tree, set(), task.flops, task.corpus, first)


def run_if_alike(expected: Making, *task: Any) -> dict[str, Any]:
    """The run, on a worker whose code, versions and text are those of its caller.

    Raises UserError where they are not.
    """
    here = Path().resolve()
    if not (here / "dvc.yaml").is_file():
        raise UserError(
            f"a worker runs in {here}, which is no clone of the project; start it there"
        )
    own = Task(*task)
    if not (own.corpus / "train.parquet").is_file():
        raise UserError(f"a worker in {here} has no text in {own.corpus}; run `dvc pull` there")
    unlike = differences(expected, _made(own))
    if unlike:
        raise UserError(
            f"a worker in {here} is not like this project: {'; '.join(unlike)}; check out this"
            " commit there and run `make setup`"
        )
    return point.run_quietly(*own)
