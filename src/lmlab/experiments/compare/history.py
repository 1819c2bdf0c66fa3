"""Names to runs: the workspace, DVC's experiments, commits, branches and studies.

Only runs that came to their end, finished or diverged, are runs here. `dvc exp show` lists queued,
failed and killed ones too, with the measures of the commit they began from; here `unfinished` names
those. Everything is read from Git's objects and the workspace; nothing is checked out.
"""

import fnmatch
import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from ruamel.yaml.error import YAMLError

from lmlab.core import params
from lmlab.core.errors import UserError
from lmlab.core.params import Values
from lmlab.experiments import git
from lmlab.experiments.compare import dvc_cache, study_points
from lmlab.experiments.compare.experiments import Experiment, Experiments
from lmlab.experiments.compare.lock import read_params
from lmlab.experiments.compare.run import MEASURES, METRICS, WORKSPACE, Run, with_results
from lmlab.experiments.compare.run_files import DAMAGED, FILES, NoRunError, read_run, with_times
from lmlab.experiments.git import Repository
from lmlab.experiments.wording import few, quantity

MOST_NAMED = 6
"""Unfinished experiments that a note lists."""


def read(names: list[str], root: Path = Path()) -> list[Run]:
    """The runs of these names, in that order, each once. See `gather`."""
    return gather(names, root)[0]


def gather(names: list[str], root: Path = Path()) -> tuple[list[Run], list[str]]:
    """The runs of these names, and what there is to say about them, a line each.

    A name is `workspace`, an experiment's name or a pattern of such names (`wide-*`), anything Git
    takes for a commit, or a study's folder, with `:arm` for one of its arms. No names at all: HEAD,
    the workspace, and all experiments that began from HEAD. Raises UserError for a name that means
    nothing, or where there are no runs.
    """
    below_the_top = git.answers("rev-parse", "--show-prefix", root=root)
    if below_the_top and not (root / "params.yaml").exists():
        raise UserError(
            f"there is no params.yaml in {root.resolve()}; run from the project's top folder"
        )
    history = _History(root)
    runs: dict[str, Run] = {}
    if names:
        for name in names:
            for run in history.named(name):
                runs.setdefault(run.name, run)
    else:
        for run in history.of_head():
            runs.setdefault(run.name, run)
    if not runs:
        reasons = f" ({'; '.join(history.notes)})" if history.notes else ""
        raise UserError(
            f"there are no finished runs to compare{reasons}; make some with `dvc exp run`, or"
            " name them"
        )
    return list(runs.values()), history.notes


def siblings(name: str, root: Path = Path(), known: Iterable[Run] = ()) -> list[Run]:
    """The run of the commit that an experiment began from, and all experiments that began there.

    For a commit that is its own run and the experiments that began from it. Those that are `known`
    by name are not read again.
    """
    read_before = {run.name: run for run in known}
    history = _History(root)
    finished = history.experiments.finished()
    of_experiment = next((each.began_from for each in finished if each.name == name), None)
    commit = of_experiment or history.commit(name)
    if commit is None:
        return []
    if commit == history.commit(WORKSPACE):
        commits_name = "HEAD"
    else:
        commits_name = commit[:7] if of_experiment else name
    all_of_it = [Experiment(commits_name, commit, commit), *history.began_from(commit)]
    history.read_ahead([each for each in all_of_it if each.name not in read_before])
    runs: list[Run] = []
    for experiment in all_of_it:
        if experiment.name in read_before:
            runs.append(read_before[experiment.name])
        else:
            runs += history.readable([experiment])
    return runs


@dataclass(frozen=True)
class Unfinished:
    """An experiment without results: queued, running, failed or killed."""

    name: str
    state: str
    """queued, running or failed; where DVC does not say which, `running or failed` or `failed or
    removed`.
    """
    params: Values
    """Its params.yaml by dotted key; empty where Git no longer has it."""
    began_from: str
    """The commit it began from."""


def unfinished(root: Path = Path()) -> list[Unfinished]:
    """The experiments without results, of all commits, according to DVC's own records."""
    repository = Repository(root)
    tasks = Experiments(repository).unfinished()
    repository.read_ahead([task.commit for task in tasks], ["params.yaml"])
    experiments = []
    for task in tasks:
        written = repository.file(task.commit, "params.yaml")
        try:
            values = read_params(written) if written else {}
        except (ValueError, YAMLError):
            values = {}
        experiments.append(Unfinished(task.name, task.state, values, task.began_from))
    return experiments


def tried(runs: Iterable[Run], root: Path = Path()) -> list[Run]:
    """These runs, the experiments of all commits, and all points of the studies these belong to.

    Each is listed once. Only params and measures are read, and what is damaged is passed over.
    """
    known = {run.name: run for run in runs}
    every_run = list(known.values())
    repository = Repository(root)
    experiments = Experiments(repository).finished()
    commits = [each.commit for each in experiments]
    repository.read_ahead(commits, ["params.yaml", MEASURES, METRICS])
    for each in experiments:
        is_known = each.name in known and known[each.name].began_from == each.began_from
        run = None if is_known else _without_files(repository, each)
        if run:
            every_run.append(run)
    for arm in dict.fromkeys(run.arm for run in known.values() if run.arm):
        folder, _, name = arm.partition(":")
        every_run += study_points.read(root, Path(folder), name, whole_sweep=True)
    return every_run


def _without_files(repository: Repository, experiment: Experiment) -> Run | None:
    """An experiment's params and measures alone; None where either is missing or damaged."""
    results = repository.file(experiment.commit, MEASURES)
    results = results or repository.file(experiment.commit, METRICS)
    written = repository.file(experiment.commit, "params.yaml")
    if results is None or written is None:
        return None
    try:
        values = read_params(written)
        run = Run(experiment.name, values, {}, began_from=experiment.began_from)
        return with_results(run, json.loads(results))
    except DAMAGED:
        return None


def commit_of(name: str, root: Path = Path()) -> str:
    """The commit that a run's name means: an experiment's, a revision's, HEAD for the workspace."""
    history = _History(root)
    experiments = history.experiments.matching(name)
    return experiments[0].commit if experiments else history.commit(name) or ""


class _History:
    """What a repository holds, and notes on the runs that were read from it."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.repository = Repository(root)
        self.experiments = Experiments(self.repository)
        self.notes: list[str] = []

    def commit(self, name: str) -> str | None:
        """The commit that a run's name means, if it is not an experiment's."""
        return self.experiments.commit("HEAD" if name == WORKSPACE else name)

    def began_from(self, commit: str) -> list[Experiment]:
        return [each for each in self.experiments.finished() if each.began_from == commit]

    def read_ahead(self, experiments: Sequence[Experiment]) -> None:
        self.repository.read_ahead([each.commit for each in experiments], FILES)

    def named(self, name: str) -> list[Run]:
        """The runs that one name means. Raises UserError where there is none."""
        folder, _, arm = name.partition(":")
        if name == WORKSPACE:
            return [self._workspace()]
        experiments = self.experiments.matching(name)
        if experiments:
            self.read_ahead(experiments)
            runs = self.readable(experiments)
            if not runs:
                raise UserError(self.notes[-1])
            return runs
        if study_points.is_study(self.root / folder):
            return list(study_points.read(self.root, Path(folder), arm))
        commit = self.commit(name)
        if commit:
            return [self._experiment(Experiment(name, commit, commit))]
        if any(fnmatch.fnmatchcase(task.name, name) for task in self.experiments.unfinished()):
            raise UserError(
                f"{name} is queued, running or failed and has no results; see `dvc queue status`"
            )
        raise UserError(
            f"nothing is called {name!r}: no finished experiment, commit or study;"
            f" {params.nearest(name, self._all_names())}"
        )

    def _all_names(self) -> Iterator[str]:
        yield WORKSPACE
        yield from (each.name for each in self.experiments.finished())
        refs = ("refs/heads", "refs/tags")
        yield from self.repository.lines("for-each-ref", "--format=%(refname:short)", *refs)
        yield from (f"studies/{path.parent.name}" for path in self.root.glob("studies/*/points"))

    def of_head(self) -> Iterator[Run]:
        """HEAD, the workspace and the experiments that began from HEAD, as far as they are runs."""
        head = self.commit("HEAD")
        if head:
            yield from self.readable([Experiment("HEAD", head, head)])
        try:
            yield self._workspace()
        except NoRunError as error:
            self.notes.append(str(error))
        experiments = self.began_from(head) if head else []
        self.read_ahead(experiments)
        yield from self.readable(experiments)
        unfinished = [
            task.name for task in self.experiments.unfinished() if task.began_from == head
        ]
        if unfinished:
            self.notes.append(
                f"{quantity(len(unfinished), 'experiment')} queued, running or failed (`dvc queue"
                f" status`), without results: {few(unfinished, MOST_NAMED)}"
            )
        elsewhere = len(self.experiments.finished()) - len(experiments)
        if elsewhere:
            self.notes.append(
                f"{quantity(elsewhere, 'experiment')} that began from other commits, not read; name"
                " them to have them"
            )

    def readable(self, experiments: Sequence[Experiment]) -> list[Run]:
        """The runs of these; a note for each that holds none."""
        runs = []
        for experiment in experiments:
            try:
                runs.append(self._experiment(experiment))
            except NoRunError as error:
                self.notes.append(str(error))
        return runs

    def _experiment(self, experiment: Experiment) -> Run:
        """The run that a commit holds, under the experiment's name. Raises NoRunError."""
        commit = experiment.commit

        def tracked(path: str) -> bytes | None:
            return self.repository.file(commit, path)

        def any_file(path: str) -> bytes | None:
            content = tracked(path)
            if content is None:
                return dvc_cache.read(self.root, tracked("dvc.lock"), path)
            return content

        answer = read_run(experiment.name, tracked, with_times(self.root, any_file))
        self.notes += answer.notes
        return replace(answer.run, began_from=experiment.began_from)

    def _workspace(self) -> Run:
        """Raises NoRunError."""

        def read(path: str) -> bytes | None:
            return (self.root / path).read_bytes() if (self.root / path).is_file() else None

        answer = read_run(WORKSPACE, read, with_times(self.root, read))
        self.notes += answer.notes
        return replace(answer.run, began_from=self.commit(WORKSPACE) or "")
