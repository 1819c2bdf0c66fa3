"""DVC's experiments as they stand in Git and in DVC's own records: finished, queued, running and
failed ones.

A finished experiment is a commit under refs/exps/. DVC makes that commit only when a run has come
to its end, finished or diverged. Of the queued, running and failed ones it keeps a log and a file
each.
"""

import fnmatch
import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from pydantic import BaseModel

from lmlab.experiments import openings
from lmlab.experiments.git import Repository

PREPARING_OR_RUNNING = (0, 1, 2)
"""DVC's numbers for the states of an experiment that has begun and not ended."""


@dataclass(frozen=True)
class Experiment:
    """A finished experiment."""

    name: str
    commit: str
    began_from: str
    """The commit it began from."""


@dataclass(frozen=True)
class Task:
    """An experiment without results."""

    name: str
    state: str
    """queued, running or failed; where DVC does not say which, `running or failed` or `failed or
    removed`.
    """
    commit: str
    """The one that DVC made of the workspace to run it in."""
    began_from: str


def find(name: str, root: Path = Path()) -> str | None:
    """The commit of the finished experiment of this name; None where there is none."""
    experiments = _refs(Repository(root))
    return next((each.commit for each in experiments if each.name == name), None)


def _refs(repository: Repository) -> list[Experiment]:
    """Those under refs/exps/<first two digits>/<other 38 of the commit it began from>/<name>.

    The refs of DVC's queues have another shape.
    """
    experiments = []
    for line in repository.lines("for-each-ref", "--format=%(objectname) %(refname)", "refs/exps"):
        match = re.fullmatch(r"(\w+) refs/exps/(\w\w)/(\w{38})/(.+)", line)
        if match:
            commit, first_two, others, name = match.groups()
            experiments.append(Experiment(name, commit, first_two + others))
    return experiments


class Experiments:
    """The experiments of a repository. What was read is remembered.

    Counting an opening of the test split makes a commit and so moves HEAD. The experiments that
    began before that are still HEAD's own: a commit that only counts stands for the one before it.
    """

    def __init__(self, repository: Repository) -> None:
        self.repository = repository
        self._finished: list[Experiment] | None = None
        self._unfinished: list[Task] | None = None
        self._parents_of_counts: dict[str, str] | None = None

    def commit(self, revision: str) -> str | None:
        """The commit that a revision means, or the last before it that does more than count."""
        commit = self.repository.commit(revision)
        return self._before_counts(commit) if commit else None

    def _before_counts(self, commit: str) -> str:
        if self._parents_of_counts is None:
            self._parents_of_counts = openings.parents_of_counts(self.repository)
        while commit in self._parents_of_counts:
            commit = self._parents_of_counts[commit]
        return commit

    def finished(self) -> list[Experiment]:
        """All finished experiments, of all commits."""
        if self._finished is None:
            self._finished = [
                replace(experiment, began_from=self._before_counts(experiment.began_from))
                for experiment in _refs(self.repository)
            ]
        return self._finished

    def matching(self, pattern: str) -> list[Experiment]:
        """The finished ones of a name or a pattern; only those of HEAD where it has any.

        The same name may be used again on another commit.
        """
        head = self.commit("HEAD")
        matching = [each for each in self.finished() if fnmatch.fnmatchcase(each.name, pattern)]
        return [each for each in matching if each.began_from == head] or matching

    def unfinished(self) -> list[Task]:
        """Those that are queued, running or failed, of all commits."""
        if self._unfinished is None:
            tasks = [*self._logged("failed", "failed"), *self._logged("stash", "queued")]
            logged = {task.commit for task in tasks}
            tasks += [task for task in self._begun() if task.commit not in logged]
            self._unfinished = [task for task in tasks if not self._has_finished(task)]
        return self._unfinished

    def _logged(self, ref: str, state: str) -> Iterator[Task]:
        """Those in one of DVC's logs.

        A line ends in dvc-exp:<commit>:<commit it began from>:<name>, and in :<branch> where one
        was named.
        """
        words = ("log", "--walk-reflogs", "--format=%H %gs", f"refs/exps/celery/{ref}", "--")
        for line in self.repository.lines(*words):
            match = re.search(r"^(\w+) .*dvc-exp:\w+:(\w+):([^:]*)", line)
            if match:
                commit, began_from, name = match.groups()
                yield Task(name or commit[:7], state, commit, self._before_counts(began_from))

    def _begun(self) -> Iterator[Task]:
        """Those that DVC has begun, unless its record says that there are results."""
        for path in sorted((self.repository.root / ".dvc/tmp/exps/run").glob("*/*.run")):
            try:
                record = _RunRecord.model_validate_json(path.read_bytes())
            except (OSError, ValueError):
                continue
            if record.result_hash is None:
                name = record.name or path.stem[:7]
                began_from = self._before_counts(record.baseline_rev)
                yield Task(name, record.state, path.stem, began_from)

    def _has_finished(self, task: Task) -> bool:
        """Whether a finished experiment of its name came of this task.

        That is one that began from the same commit or, where the task was queued again elsewhere,
        one with the same params.
        """
        same_name = [each for each in self.finished() if each.name == task.name]
        if any(each.began_from == task.began_from for each in same_name):
            return True
        if not same_name:
            return False
        own = self.repository.file(task.commit, "params.yaml")
        params = [self.repository.file(each.commit, "params.yaml") for each in same_name]
        return own is not None and own in params


class _RunRecord(BaseModel):
    """What DVC writes of an experiment when it begins it.

    Outside the queue it writes nothing more after that, so those that ended well are among them.
    """

    name: str | None
    baseline_rev: str
    root_dir: str
    location: str
    status: int
    result_hash: str | None

    @property
    def state(self) -> str:
        if self.location == "workspace":
            return "running or failed"
        if self.status in PREPARING_OR_RUNNING and Path(self.root_dir).is_dir():
            return "running"
        return "failed" if self.location == "dvc-task" else "failed or removed"
