"""What queues a task again: its params, exactly, through DVC's own reading of -S."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from dvc.utils.hydra import apply_overrides
from ruamel.yaml import YAML

from lmlab.core import params
from lmlab.core.errors import UserError
from lmlab.experiments import commands, git
from lmlab.experiments.compare import lock
from lmlab.experiments.search import queueing
from lmlab.experiments.search.queueing import Task

VALUES: list[Any] = [
    3,
    -1,
    0.5,
    1e-05,
    1e30,
    0.013385298778232689,
    1.0,
    True,
    False,
    None,
    "word",
    "",
    "two, three",
    "a: b",
    "[x]",
    "{y}",
    "1",
    "true",
    "a=b",
    "é",
    "range(0,3)",
    "texts/**/*.txt",
    "it's",
    'say "so"',
    "back\\slash",
    'both \\" here',
    "at the end\\",
    "\\\\",
    [],
    [1, 2],
    ["a, b", "", "c: d"],
    [0.5, "x"],
]


def write(folder: Path, value: Any) -> Path:
    path = folder / "params.yaml"
    with path.open("w") as file:
        YAML().dump({"some": {"key": value, "other": 1}}, file)
    return path


@pytest.fixture
def repository(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name in ("AUTHOR", "COMMITTER"):
        monkeypatch.setenv(f"GIT_{name}_NAME", "test")
        monkeypatch.setenv(f"GIT_{name}_EMAIL", "test@example.org")
    monkeypatch.setenv("GIT_CONFIG_GLOBAL", os.devnull)
    monkeypatch.chdir(tmp_path)
    git.output("init", "-q")
    return tmp_path


def commit() -> str:
    git.output("add", "-A")
    git.output("commit", "-qm", "some")
    return git.output("rev-parse", "HEAD").strip()


@pytest.mark.parametrize("value", VALUES, ids=repr)
def test_a_tasks_params_come_back_exactly(repository: Path, value: Any) -> None:
    path = write(repository, value)
    then, wanted = commit(), params.read(path)
    write(repository, "something else")
    words = queueing.overrides(then, params.read(path))
    assert len(words) == 1
    apply_overrides(path, words)
    assert params.read(path) == wanted


def test_params_that_are_the_same_are_not_named(repository: Path) -> None:
    path = write(repository, 2)
    assert queueing.overrides(commit(), params.read(path)) == []


def test_a_task_with_other_keys_is_not_guessed_at(repository: Path) -> None:
    write(repository, 2)
    with pytest.raises(UserError, match=r"such as some\.key"):
        queueing.overrides(commit(), {"some": {"other": 1}})


def test_a_task_lives_while_a_process_names_it() -> None:
    revision = "5f" * 20
    assert not Task("some", "running", revision).lives
    waits = "print(flush=True); input()"
    command = [sys.executable, "-c", waits, f"--infofile={revision}.run"]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdin=pipe, stdout=pipe) as process:
        assert process.stdout is not None
        process.stdout.readline()  # before that its command line may not be there yet
        assert Task("some", "running", revision).lives
        process.communicate(b"\n")
    assert not Task("some", "running", revision).lives


def test_what_git_and_dvc_refuse_is_one_line(repository: Path) -> None:
    with pytest.raises(UserError, match=r"git show nothing:params\.yaml: fatal"):
        lock.params_at("nothing")
    with pytest.raises(UserError, match=r"dvc queue status: .*not inside"):
        commands.dvc("queue", "status")


def test_a_name_that_no_task_has_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(queueing, "unfinished", lambda: [Task("wide-1", "failed", "0" * 40)])
    with pytest.raises(
        UserError, match=r"no task 'wide1' has failed or runs; did you mean wide-1\?"
    ):
        list(queueing.requeue(["wide1"], {}))
