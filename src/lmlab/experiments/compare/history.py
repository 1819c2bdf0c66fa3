"""Runs that were made before, read from where they are kept: the workspace, DVC's experiments,
commits, branches, studies.

An experiment is a commit under refs/exps/, and DVC makes it only of a run that came to its end,
finished or diverged; so queued, failed and killed runs, beside which `dvc exp show` repeats the
measures of their baseline, are none here; `unfinished` tells of those. Everything is read from
Git's objects; what a run was made with stands in its dvc.lock, whatever params.yaml says by then.
"""

import fnmatch
import hashlib
import json
import re
import subprocess
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cache
from io import BytesIO
from pathlib import Path
from typing import Any

import pandas as pd
from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from lmlab.core import params
from lmlab.core.errors import UserError
from lmlab.experiments import openings, timing
from lmlab.experiments.commands import leaves
from lmlab.experiments.compare.run import (
    BLOCKS,
    CURVES,
    MEASURES,
    METRICS,
    WORKSPACE,
    Reader,
    Run,
    measured,
    numbers,
)
from lmlab.experiments.studies import study as studies
from lmlab.experiments.wording import quantity


def read(names: list[str], root: Path = Path()) -> list[Run]:
    """The runs that are called so, in that order, each once. See `gather`."""
    return gather(names, root)[0]


def gather(names: list[str], root: Path = Path()) -> tuple[list[Run], list[str]]:
    """The runs that are called so, and what there is to say about them, a line each.

    A name is `workspace`, an experiment's name or a pattern of such (`wide-*`), anything Git takes
    for a commit, or a study's folder, with `:arm` for one of its arms. No names at all: HEAD, the
    workspace, and all experiments that began from HEAD. Raises UserError for a name that nothing
    has, or where there are no runs.
    """
    git = _Git(root)
    if (git.run("rev-parse", "--show-prefix") or b"").strip() and not (
        root / "params.yaml"
    ).exists():
        raise UserError(
            f"there is no params.yaml in {root.resolve()}; run from the project's top folder"
        )
    notes: list[str] = []
    found: dict[str, Run] = {}
    for name in names or ["HEAD", WORKSPACE]:
        for run in _named(git, name, notes, must=bool(names)):
            found.setdefault(run.name, run)
    if not names:
        head = git.commit("HEAD")
        own = [experiment for experiment in git.experiments() if experiment.baseline == head]
        git.read_ahead([experiment.commit for experiment in own])
        for experiment in own:
            found |= {run.name: run for run in _of_experiment(git, experiment, notes)}
        others = len(git.experiments()) - len(own)
        if left := [task.name for task in git.unfinished() if task.began_from == head]:
            few = ", ".join(left[:6]) + (f" and {len(left) - 6} more" if len(left) > 6 else "")
            notes.append(
                f"{quantity(len(left), 'experiment')} queued, running or failed (`dvc queue"
                f" status`), without results: {few}"
            )
        if others:
            notes.append(
                f"{quantity(others, 'experiment')} that began from other commits, not read; name"
                " them to have them"
            )
    if not found:
        said = f" ({'; '.join(notes)})" if notes else ""
        raise UserError(
            f"there are no finished runs to compare{said}; make some with `dvc exp run`, or name"
            " them"
        )
    return list(found.values()), notes


def siblings(name: str, root: Path = Path(), known: Iterable[Run] = ()) -> list[Run]:
    """The row that an experiment began from, or the commit itself, and all experiments that began
    there.

    Those that are `known` already, by their names, are not read again.
    """
    read_before = {run.name: run for run in known}
    git = _Git(root)
    row = next((one.baseline for one in git.experiments() if one.name == name), None)
    commit = row or git.commit("HEAD" if name == WORKSPACE else name)
    if commit is None:
        return []
    shown = "HEAD" if commit == git.commit("HEAD") else commit[:7] if row else name
    of_row = [
        _Experiment(shown, commit, commit),
        *(one for one in git.experiments() if one.baseline == commit),
    ]
    git.read_ahead([one.commit for one in of_row if one.name not in read_before])
    found: list[Run] = []
    for one in of_row:
        found += (
            [read_before[one.name]] if one.name in read_before else _of_experiment(git, one, [])
        )
    return found


@dataclass(frozen=True)
class Unfinished:
    """An experiment that has no results: DVC has it queued, is at it, or it failed or was
    killed.
    """

    name: str
    state: str
    """queued, running, failed; or two of these, or removed, where DVC does not tell."""
    params: dict[str, Any]
    """Its params.yaml by dotted keys; empty where Git no longer has it."""
    began_from: str
    """The commit it began from."""


def unfinished(root: Path = Path()) -> list[Unfinished]:
    """The experiments without results, of all commits, as DVC's own books have them."""
    git = _Git(root)
    tasks = git.unfinished()
    git.read_ahead([task.commit for task in tasks], ["params.yaml"])
    found = []
    for task in tasks:
        written = git.file(task.commit, "params.yaml")
        try:
            tree = leaves(_yaml(written.decode())) if written else {}
        except (ValueError, YAMLError):
            tree = {}
        found.append(Unfinished(task.name, task.state, tree, task.began_from))
    return found


def tried(runs: Iterable[Run], root: Path = Path()) -> list[Run]:
    """Every run there has been: all experiments of all commits, and all points of the studies that
    these runs are of.

    With the runs themselves, each once. Only params and measures are read, and what is damaged is
    passed over.
    """
    git = _Git(root)
    experiments = git.experiments()
    git.read_ahead([one.commit for one in experiments], ["params.yaml", MEASURES, METRICS])
    known = {run.name: run for run in runs}
    found = list(known.values())
    for one in experiments:
        results = git.file(one.commit, MEASURES) or git.file(one.commit, METRICS)
        written = git.file(one.commit, "params.yaml")
        is_known = one.name in known and known[one.name].began_from == one.baseline
        if is_known or results is None or written is None:
            continue
        try:
            bare = Run(one.name, leaves(_yaml(written.decode())), {}, began_from=one.baseline)
            found.append(measured(bare, json.loads(results)))
        except (ValueError, AttributeError, LookupError, OverflowError, YAMLError):
            continue
    for arm in dict.fromkeys(run.arm for run in known.values() if run.arm):
        folder, _, name = arm.partition(":")
        found += _of_study(root, Path(folder), name, swept=True)
    return found


def commit_of(name: str, root: Path = Path()) -> str:
    """The commit that a run's name means: an experiment's, or whatever Git takes it for; of the
    workspace, HEAD's.
    """
    git = _Git(root)
    found = _experiments_called(git, name)
    return found[0].commit if found else git.commit("HEAD" if name == WORKSPACE else name) or ""


def timed(run: Run) -> Run:
    """The same with what it took, measures such as timing.train.training_seconds, where this
    machine took those times.
    """
    measures = dict(run.measures)
    for stage in ("train", "evaluate"):
        if content := run.open(f"data/timing/{stage}.json"):
            measures |= {
                f"timing.{stage}.{key}": value for key, value in numbers(json.loads(content))
            }
    return replace(run, measures=measures)


# --------------------------------------------------------------------------------------------------
# Git


FILES = (
    "params.yaml",
    "dvc.lock",
    MEASURES,
    METRICS,
    *(f"results/{name}.csv" for name in (*CURVES, BLOCKS)),
)
"""What is read of every run."""


@dataclass(frozen=True)
class _Experiment:
    name: str
    commit: str
    baseline: str


@dataclass(frozen=True)
class _Task:
    """An experiment without results; its commit is the one that DVC made of the workspace to run it
    in.
    """

    name: str
    state: str
    commit: str
    began_from: str


class _Git:
    """A repository's refs and files, through git itself."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self._experiments: list[_Experiment] | None = None
        self._unfinished: list[_Task] | None = None
        self._files: dict[tuple[str, str], bytes | None] = {}
        self._openings: dict[str, str] | None = None

    def run(self, *arguments: str, given: bytes | None = None) -> bytes | None:
        """What a git command printed, `given` this; None where it failed."""
        try:
            done = subprocess.run(
                ["git", *arguments], cwd=self.root, input=given, capture_output=True, check=False
            )
        except FileNotFoundError as error:
            raise UserError(
                f"cannot run git in {self.root.resolve()}: {error.strerror}: {error.filename}"
            ) from None
        return done.stdout if done.returncode == 0 else None

    def commit(self, revision: str) -> str | None:
        """The full name of the commit that a revision means, if it means one."""
        answer = self.run(
            "rev-parse", "--verify", "--quiet", "--end-of-options", f"{revision}^{{commit}}"
        )
        return self.before_openings(answer.decode().strip()) if answer else None

    def before_openings(self, commit: str) -> str:
        """The commit itself, or the last one before it that did more than count an opening of the
        test split.

        Counting moves HEAD; the experiments that began from it are still its own.
        """
        if self._openings is None:
            made = self.run("log", "--all", "--format=%H %P", "--", openings.FILE) or b""
            named = [line.split() for line in made.decode().splitlines()]
            self._openings = {
                words[0]: words[1]
                for words in named
                if len(words) == 2 and self._only_counts(words[0])
            }
        while commit in self._openings:
            commit = self._openings[commit]
        return commit

    def _only_counts(self, commit: str) -> bool:
        changed = (
            self.run("diff-tree", "--no-commit-id", "--name-only", "-r", "--relative", commit)
            or b""
        )
        return changed.decode().split() == [openings.FILE]

    def file(self, commit: str, path: str) -> bytes | None:
        """A file at a commit; the path begins at the project's folder, which may be one below the
        repository's.
        """
        if (commit, path) not in self._files:
            self._files[commit, path] = self.run("cat-file", "blob", f"{commit}:./{path}")
        return self._files[commit, path]

    def read_ahead(self, commits: Sequence[str], paths: Sequence[str] = FILES) -> None:
        """Read these files of these commits, by their full names, at once: git is started once and
        not for each.
        """
        wanted = [(commit, path) for commit in dict.fromkeys(commits) for path in paths]
        names = "".join(f"{commit}:./{path}\n" for commit, path in wanted)
        answer = (self.run("cat-file", "--batch", given=names.encode()) or b"") if wanted else b""
        at = 0
        for asked in wanted:
            end = answer.find(b"\n", at)
            if end < 0:
                return  # git stopped: `file` asks for each that is left
            header = answer[at:end].split()
            at = end + 1
            if len(header) != 3 or header[1] != b"blob":
                self._files[asked] = None  # it says `<name> missing`
                continue
            size = int(header[2])
            self._files[asked] = answer[at : at + size]
            at += size + 1

    def experiments(self) -> list[_Experiment]:
        """Those that finished: refs/exps/<two digits>/<the baseline's other 38>/<name>; those of
        queues look otherwise.
        """
        if self._experiments is None:
            refs = self.run("for-each-ref", "--format=%(objectname) %(refname)", "refs/exps") or b""
            parsed = (
                re.fullmatch(r"(\w+) refs/exps/(\w\w)/(\w{38})/(.+)", line)
                for line in refs.decode().splitlines()
            )
            self._experiments = [
                _Experiment(one[4], one[1], self.before_openings(one[2] + one[3]))
                for one in parsed
                if one
            ]
        return self._experiments

    def unfinished(self) -> list[_Task]:
        """Each experiment that is queued, runs or has failed, by DVC's log of them and what it
        keeps of those it began.
        """
        if self._unfinished is None:
            tasks = [*self._of_log("failed", "failed"), *self._of_log("stash", "queued")]
            known = {task.commit for task in tasks}
            begun = (
                _begun(path) for path in sorted((self.root / ".dvc/tmp/exps/run").glob("*/*.run"))
            )
            tasks += [
                self._before_openings_of(task)
                for task in begun
                if task and task.commit not in known
            ]
            finished: dict[str, list[_Experiment]] = {}
            for one in self.experiments():
                finished.setdefault(one.name, []).append(one)
            self._unfinished = [
                task for task in tasks if not self._is_done(task, finished.get(task.name, []))
            ]
        return self._unfinished

    def _is_done(self, task: _Task, finished: list[_Experiment]) -> bool:
        """Whether one of the finished ones of its name came of it, or, where it was queued again,
        of its params.
        """
        if any(one.baseline == task.began_from for one in finished):
            return True
        own = self.file(task.commit, "params.yaml")
        return own is not None and any(
            self.file(one.commit, "params.yaml") == own for one in finished
        )

    def _before_openings_of(self, task: _Task) -> _Task:
        return replace(task, began_from=self.before_openings(task.began_from))

    def _of_log(self, ref: str, state: str) -> Iterator[_Task]:
        """The lines end in dvc-exp:<commit>:<baseline>:<name>, and in a branch where one was
        named.
        """
        log = (
            self.run("log", "--walk-reflogs", "--format=%H %gs", f"refs/exps/celery/{ref}", "--")
            or b""
        )
        for line in log.decode().splitlines():
            if found := re.search(r"^(\w+) .*dvc-exp:\w+:(\w+):([^:]*)", line):
                commit, began_from, name = found.groups()
                yield _Task(name or commit[:7], state, commit, self.before_openings(began_from))


PREPARING_OR_RUNNING = (0, 1, 2)
"""DVC's numbers for the states of what it has begun and not ended."""


def _begun(path: Path) -> _Task | None:
    """What DVC keeps of an experiment that it began, unless that says that it has results.

    Outside the queue DVC writes nothing more once it began, so those that ended well are among
    them.
    """
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
        if record["result_hash"] is not None:
            return None
        runs = record["status"] in PREPARING_OR_RUNNING and Path(record["root_dir"]).is_dir()
        ended = "failed" if record["location"] == "dvc-task" else "failed or removed"
        state = (
            "running or failed"
            if record["location"] == "workspace"
            else "running"
            if runs
            else ended
        )
        name, began_from = record["name"] or path.stem[:7], record["baseline_rev"]
    except (OSError, ValueError, LookupError, TypeError):
        return None
    return _Task(name, state, path.stem, began_from)


def _named(git: _Git, name: str, notes: list[str], must: bool) -> Iterator[Run]:
    """The runs that one name means."""
    folder, _, arm = name.partition(":")
    experiments = _experiments_called(git, name)
    if name == WORKSPACE:
        yield from _workspace(git.root, git.commit("HEAD") or "", notes, must)
    elif experiments:
        git.read_ahead([one.commit for one in experiments])
        found = [run for one in experiments for run in _of_experiment(git, one, notes)]
        if must and not found:
            raise UserError(notes[-1])
        yield from found
    elif (git.root / folder / "points").is_dir() and (git.root / folder / "params.yaml").exists():
        yield from _of_study(git.root, Path(folder), arm)
    elif commit := git.commit(name):
        found = list(_of_experiment(git, _Experiment(name, commit, commit), notes))
        if must and not found:
            raise UserError(notes[-1])
        yield from found
    elif must and any(fnmatch.fnmatchcase(task.name, name) for task in git.unfinished()):
        raise UserError(
            f"{name} is queued, running or failed and has no results; see `dvc queue status`"
        )
    elif must:
        refs = (
            git.run("for-each-ref", "--format=%(refname:short)", "refs/heads", "refs/tags") or b""
        )
        studies = [
            f"studies/{path.parent.name}" for path in (git.root / "studies").glob("*/points")
        ]
        known = [
            WORKSPACE,
            *(one.name for one in git.experiments()),
            *refs.decode().split(),
            *studies,
        ]
        raise UserError(
            f"nothing is called {name!r}: no finished experiment, commit or study;"
            f" {params.nearest(name, known)}"
        )


def _experiments_called(git: _Git, name: str) -> list[_Experiment]:
    """Those of a name or a pattern; those of HEAD where it has some, as a name may be given again
    on another commit.
    """
    head = git.commit("HEAD")
    found = [one for one in git.experiments() if fnmatch.fnmatchcase(one.name, name)]
    return [one for one in found if one.baseline == head] or found


def _of_experiment(git: _Git, experiment: _Experiment, notes: list[str]) -> Iterator[Run]:
    """The run that a commit holds, under its name."""
    commit = experiment.commit

    def opened(path: str) -> bytes | None:
        content = git.file(commit, path)
        return (
            content
            if content is not None
            else _cached(git.root, git.file(commit, "dvc.lock"), path)
        )

    for run in _run(
        experiment.name, _with_times(git.root, opened), lambda path: git.file(commit, path), notes
    ):
        yield replace(run, began_from=experiment.baseline)


def _with_times(root: Path, opened: Reader) -> Reader:
    """The same files, and data/timing/<stage>.json as that run's stages took on this machine, which
    no commit holds.
    """

    def open_(path: str) -> bytes | None:
        if not path.startswith(f"{timing.FOLDER}/"):
            return opened(path)
        model = opened(str(timing.MODEL))
        weights = json.loads(model).get("weights_sha256", "") if model else ""
        facts = timing.of_run(weights, root).get(Path(path).stem)
        return json.dumps(facts).encode() if facts else None

    return open_


def _workspace(root: Path, head: str, notes: list[str], must: bool) -> Iterator[Run]:
    def opened(path: str) -> bytes | None:
        return (root / path).read_bytes() if (root / path).is_file() else None

    found = list(_run(WORKSPACE, _with_times(root, opened), opened, notes))
    if must and not found:
        raise UserError(notes[-1])
    for run in found:
        yield replace(run, began_from=head)


def _run(name: str, opened: Reader, file: Reader, notes: list[str]) -> Iterator[Run]:
    """The run that a set of files tells of, if they tell of one; otherwise a note that says why
    not.
    """
    results = METRICS if file(MEASURES) is None else MEASURES
    metrics, written, locked = file(results), file("params.yaml"), file("dvc.lock")
    if metrics is None or written is None or locked is None:
        missing = METRICS if metrics is None else "params.yaml" if written is None else "dvc.lock"
        notes.append(
            f"{name} holds no run: it has no {missing}; run `dvc repro` and commit, or name another"
        )
        return
    try:
        lock = _Lock(locked.decode(), results)
        run = measured(Run(name, {}, {}, open=opened), json.loads(metrics))
        tree = leaves(_yaml(written.decode()))
    except (ValueError, AttributeError, LookupError, OverflowError, YAMLError):
        notes.append(f"{name} is left out: its {results}, params.yaml or dvc.lock is damaged")
        return
    if stale := lock.stale(metrics):
        notes.append(f"{name} is left out: {stale}; run `dvc repro` there")
        return
    edited = {
        key: value for key, value in lock.params.items() if key in tree and tree[key] != value
    }
    if edited:
        few = ", ".join(
            f"{key} {value!r} (now {tree[key]!r})" for key, value in list(edited.items())[:3]
        )
        more = f" and {len(edited) - 3} more" if len(edited) > 3 else ""
        notes.append(
            f"{name}: params.yaml was edited after the run; it counts as what it ran with:"
            f" {few}{more}"
        )
    curves = {}
    for curve in (*CURVES, BLOCKS):
        content = file(f"results/{curve}.csv")
        if content is not None and lock.made.get(f"results/{curve}.csv") not in (
            None,
            _md5(content),
        ):
            notes.append(
                f"{name}: results/{curve}.csv is not the one that dvc.lock tells of, so it is not"
                " shown"
            )
            continue
        try:
            if content and content.strip():
                curves[curve] = pd.read_csv(BytesIO(content))
        except ValueError:
            notes.append(f"{name}: results/{curve}.csv is damaged and was not read")
    yield replace(run, params={**tree, **edited}, curves=curves, made_with=lock.made_with)


# --------------------------------------------------------------------------------------------------
# params and locks


@cache
def _block(text: str) -> Any:
    return YAML(typ="safe").load(text)


def _yaml(text: str) -> dict[str, Any]:
    """A file of blocks as `params.read` reads it. Block by block, since those of thirty experiments
    are mostly the same.
    """
    blocks = re.split(r"^(?=[A-Za-z_])", text, flags=re.MULTILINE)
    try:
        tree: dict[str, Any] = {}
        for block in blocks:
            tree |= _block(block) or {}
        return tree
    except (YAMLError, TypeError):  # a text over several lines may begin in the first column
        whole = _block(text)
        if not isinstance(whole, dict):
            raise ValueError("not a file of blocks") from None
        return whole


class _Lock:
    """What a dvc.lock says of the stages that lead to the metrics: what they read, with what
    params, and what they wrote.

    DVC writes the file in one shape, so the hashes are read line by line: a YAML parser takes half
    a second for each.
    """

    def __init__(self, text: str, results: str = METRICS) -> None:
        self.results = results
        stages = dict(re.findall(r"^  (\w+):\n((?:    .*\n)+)", text, flags=re.MULTILINE))
        self.reads = {name: _hashes(stage, "deps") for name, stage in stages.items()}
        self.writes = {name: _hashes(stage, "outs") for name, stage in stages.items()}
        self.made = {path: md5 for writes in self.writes.values() for path, md5 in writes.items()}
        self.stages = self._leading_to(results)
        self.params: dict[str, Any] = {}
        for name in self.stages:
            if part := re.search(
                r"^    params:\n      params\.yaml:\n((?: {8}.*\n)+)",
                stages[name],
                flags=re.MULTILINE,
            ):
                self.params |= leaves(
                    _yaml("".join(line[8:] for line in part[1].splitlines(keepends=True)))
                )
        code = (
            item
            for name in ("train", "evaluate")
            if name in self.stages
            for item in self.reads[name].items()
        )
        self.made_with = {
            path: md5 for path, md5 in code if not path.startswith("data/") or path == "data/shards"
        }

    def _leading_to(self, path: str) -> list[str]:
        found: list[str] = []
        wanted = [path]
        while wanted:
            path = wanted.pop()
            for name, writes in self.writes.items():
                if name not in found and any(
                    path == out or path.startswith(f"{out}/") for out in writes
                ):
                    found.append(name)
                    wanted += self.reads[name]
        return found

    def stale(self, metrics: bytes) -> str:
        """Why these results are not those of the run that this lock tells of; empty where they
        are.
        """
        if not self.stages:
            return f"its dvc.lock knows nothing of {self.results}"
        made = self.made
        if made.get(self.results) != _md5(metrics):
            return f"its {self.results} is not the one that dvc.lock tells of"
        for name in self.stages:
            for path, md5 in self.reads[name].items():
                if path in made and made[path] != md5:
                    return f"{path} has changed since the stage {name} ran"
        return ""


def _md5(content: bytes) -> str:
    """A file's MD5 as DVC writes it."""
    return hashlib.md5(content, usedforsecurity=False).hexdigest()


def _hashes(stage: str, part: str) -> dict[str, str]:
    """The MD5 of each of a stage's `deps` or `outs`."""
    found = re.search(rf"^    {part}:\n((?:    [- ] .*\n)+)", stage, flags=re.MULTILINE)
    pairs = (
        re.findall(r"- path: (.+)\n(?:      (?!md5).*\n)*      md5: (\S+)", found[1])
        if found
        else []
    )
    return dict(pairs)


def _cached(root: Path, locked: bytes | None, path: str) -> bytes | None:
    """A file that a stage wrote, from DVC's cache, by what dvc.lock says of it or of a folder it
    lies in.
    """
    if locked is None:
        return None
    outs = {
        out: md5 for writes in _Lock(locked.decode()).writes.values() for out, md5 in writes.items()
    }
    for out, md5 in outs.items():
        if path == out:
            return _object(root, md5)
        if path.startswith(f"{out}/") and (listing := _object(root, md5)):
            inside = {entry["relpath"]: entry["md5"] for entry in json.loads(listing)}
            return _object(root, inside.get(path.removeprefix(f"{out}/"), ""))
    return None


def _object(root: Path, md5: str) -> bytes | None:
    file = _cache(root.resolve()) / md5[:2] / md5[2:]
    content = file.read_bytes() if file.is_file() else None
    if content is not None and _md5(content) != md5.removesuffix(".dir"):
        raise UserError(
            f"{file} in DVC's cache is damaged; delete it and run `dvc pull`, or `dvc repro` at"
            " that commit"
        )
    return content


@cache
def _cache(root: Path) -> Path:
    """Where DVC keeps files by their MD5, as its own settings say."""
    from dvc.repo import Repo

    with Repo(str(root)) as repository:
        return Path(repository.cache.local.path)


# --------------------------------------------------------------------------------------------------
# studies


def _of_study(root: Path, folder: Path, wanted: str, swept: bool = False) -> Iterator[Run]:
    """The reported runs of a study's arms, or of one of them; with `swept` those of sweeps too."""
    study = studies.read(root / folder)
    files = sorted((root / folder / "points").glob("*.json"))
    arms = [path.stem for path in files]
    if wanted and wanted not in arms:
        raise UserError(
            f"{folder} has no results of an arm {wanted!r}; {params.nearest(wanted, arms)}"
        )
    # what the others are compared with comes first
    files.sort(key=lambda path: path.stem != study.params.reference)
    for path in files:
        if wanted in ("", path.stem):
            record = studies.read_points(path)
            tree = _params_of_arm(root, study, path.stem, record)
            versions = record.get("made", {}).get("versions", {})
            for point in record["points"]:
                at_best = point["at"] == record["best"]
                if swept or point.get("reported", at_best):
                    yield _point(
                        f"{folder}:{path.stem}",
                        {**tree, **point["at"]},
                        {"environment": versions, **point},
                    )


def _params_of_arm(
    root: Path, study: studies.Study, arm: str, record: dict[str, Any]
) -> dict[str, Any]:
    """What the points of an arm were made with, by dotted key. Points that do not say so are taken
    to have been made with the project's params of today.
    """
    if "made" in record:
        return dict(record["made"]["params"])
    project = params.changed(params.read(root / "params.yaml"), study.params.changes)
    return leaves(params.changed(project, study.arm(arm).changes))


OLD_WORDS = {"operations": "flops", "vocabulary": "vocabulary_size", "broke": "diverged"}
"""What points called things before they said what they were made with."""


def _point(arm: str, values: dict[str, Any], point: dict[str, Any]) -> Run:
    point = {OLD_WORDS.get(key, key): value for key, value in point.items()}
    seed = point["seed"]
    facts = ("seed", "at", "environment", "reported")
    measures = dict(numbers({key: value for key, value in point.items() if key not in facts}))
    if "tokens" in measures:
        measures["tokens_seen"] = measures.pop("tokens")
    values = {**values, "train.seed": seed, "train.data_seed": seed}
    if (context := values.get("train.context")) is not None:
        # a study scores in windows that do not overlap
        measures |= {"window": float(context), "stride": float(context)}
    curves = {}
    if point.get("training"):
        curves["training"] = pd.DataFrame(point["training"], columns=["step", "train_nats"])
    if point.get("curve"):
        curves["validation"] = pd.DataFrame(point["curve"], columns=["step", "validation_nats"])
    return Run(
        f"{arm}, seed {seed}",
        values,
        measures,
        curves,
        broke=point.get("diverged", ""),
        arm=arm,
        environment=point.get("environment", {}),
    )
