"""DVC's queue put right after a crash: tasks that were lost or failed are queued once more.

A task whose worker was killed (a crash, a reboot, kill -9) stays Running in DVC's books for ever,
and DVC has no command that tries a failed task again. Both are mended here by DVC's own commands. A
task is queued again under its name with the params it had; the code is what the workspace has now.
Its training goes on from its last checkpoint.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import psutil

from lmlab.core import params
from lmlab.core.errors import UserError
from lmlab.core.params import Tree
from lmlab.experiments import commands
from lmlab.experiments.compare import experiments, lock


@dataclass(frozen=True)
class Task:
    """A task of the queue that was begun and has not succeeded."""

    name: str
    state: str
    """failed or running."""
    revision: str
    """Of the commit that DVC made of the workspace to run it in; stands in the command line of the
    process that does.
    """

    @property
    def lives(self) -> bool:
        """Whether a process is at it, whatever the books say."""
        return any(_is_at(process, self.revision) for process in psutil.process_iter())


def _is_at(process: psutil.Process, revision: str) -> bool:
    try:
        return any(revision in word for word in process.cmdline())
    except psutil.Error:
        return False


def unfinished() -> list[Task]:
    """The failed and running tasks of DVC's queue, those of other commits too.

    Read from the queue's own books: `dvc exp show --all-commits` knows them too, but goes through
    every commit there is.
    """
    from dvc.exceptions import DvcException
    from dvc.repo import Repo

    try:
        with Repo() as repository:
            queue = repository.experiments.celery_queue
            entries = [(entry, "running") for entry in queue.iter_active()]
            entries += [(entry, "failed") for entry, _ in queue.iter_failed()]
    except DvcException as error:
        raise UserError(f"DVC's queue cannot be read: {' '.join(str(error).split())}") from None
    return [
        Task(entry.name or entry.stash_rev[:7], state, entry.stash_rev) for entry, state in entries
    ]


def requeue(names: list[str], tree: Tree) -> Iterator[str]:
    """Queue lost and failed tasks again, all or those named; a line for each as it is done. `tree`
    is params.yaml now.

    Raises UserError for a name that no failed or running task has.
    """
    tasks = unfinished()
    for name in names:
        if name not in [task.name for task in tasks]:
            raise UserError(
                f"no task {name!r} has failed or runs;"
                f" {params.nearest(name, [task.name for task in tasks])}"
            )
    wanted = [task for task in tasks if task.name in names or not names]
    if not wanted:
        yield "nothing has failed or was lost"
    elif len(wanted) > 1:
        yield f"{len(wanted)} tasks have failed or run; to queue one again takes DVC some seconds"
    for task in wanted:
        yield _requeued(task, tree)


def _requeued(task: Task, tree: Tree) -> str:
    if task.lives:
        return f"{task.name}: running, left alone"
    if task.state == "running":
        commands.dvc(
            "queue", "kill", task.revision
        )  # there is nothing to kill: it writes Failed into the books
    if experiments.find(task.name):
        commands.dvc("queue", "remove", task.revision)
        return f"{task.name}: had finished, taken off the queue"
    words = [word for override in overrides(task.revision, tree) for word in ("-S", override)]
    commands.dvc("exp", "run", "--queue", "-n", task.name, *words)
    commands.dvc("queue", "remove", task.revision)
    return f"{task.name}: queued again ({'was lost' if task.state == 'running' else 'had failed'})"


def overrides(revision: str, tree: Tree) -> list[str]:
    """What makes params.yaml as it is now that of a commit, as DVC's -S takes it. Raises UserError
    where keys differ.
    """
    then, now = commands.leaves(lock.params_at(revision)), commands.leaves(tree)
    if strange := sorted(set(then) ^ set(now)):
        raise UserError(
            f"params.yaml has other keys than when {revision[:7]} was queued, such as"
            f" {strange[0]}; queue it anew"
        )
    return [f"{key}={commands.literal(value)}" for key, value in then.items() if value != now[key]]
