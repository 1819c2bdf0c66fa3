"""What DVC's experiments need of Git and of the folder is told before they begin, and whose code it
is that runs.
"""

import subprocess
from pathlib import Path

import pytest
from small import PROJECT
from typer.testing import CliRunner

from lmlab import cli
from lmlab.core.errors import UserError
from lmlab.experiments import surroundings


@pytest.fixture(autouse=True)
def nobody(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A new project in Git, without a name or an address."""
    for variable in ("GIT_COMMITTER_NAME", "GIT_COMMITTER_EMAIL", "DVC_EXP_NAME"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setenv("GIT_CONFIG_GLOBAL", "/dev/null")
    monkeypatch.setenv("GIT_CONFIG_NOSYSTEM", "1")
    (tmp_path / "lab").mkdir()
    monkeypatch.chdir(tmp_path / "lab")
    subprocess.run(["git", "init", "-q"], check=True)


def known(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GIT_COMMITTER_NAME", "A")
    monkeypatch.setenv("GIT_COMMITTER_EMAIL", "a@example.org")


def test_without_a_name_in_git_no_experiment_begins(monkeypatch: pytest.MonkeyPatch) -> None:
    surroundings.check_experiment()  # not an experiment: `dvc repro` needs no name
    monkeypatch.setenv("DVC_EXP_NAME", "some-one")
    subprocess.run(["git", "config", "user.name", "A"], check=True)
    for check in (surroundings.check_experiment, surroundings.check_experiments):
        with pytest.raises(
            UserError, match=r"git config --global user.name .* and `git config --global user.email"
        ):
            check()
    subprocess.run(["git", "config", "user.email", "a@example.org"], check=True)
    surroundings.check_experiment()
    surroundings.check_experiments()


def test_a_name_in_the_environment_will_do(monkeypatch: pytest.MonkeyPatch) -> None:
    assert len(list(surroundings.faults())) == 1
    known(monkeypatch)
    assert list(surroundings.faults()) == []


def test_a_folder_that_is_not_ascii_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "ü").mkdir()
    monkeypatch.chdir(tmp_path / "ü")
    known(monkeypatch)
    with pytest.raises(UserError, match=r"is not all ASCII, .* move the project"):
        surroundings.check_experiments()
    monkeypatch.setenv("DVC_EXP_NAME", "some-one")
    surroundings.check_experiment()  # in the workspace they work


@pytest.mark.parametrize("command", [["search", "--key", "train.steps=1..3"], ["requeue"]])
def test_commands_that_queue_or_run_experiments_refuse_first(command: list[str]) -> None:
    Path("params.yaml").write_text(
        (PROJECT / "params.yaml").read_text(encoding="utf-8"), encoding="utf-8"
    )
    result = CliRunner().invoke(cli.app, command)
    assert result.exit_code == 2
    assert result.stderr.startswith("error: Git does not know who you are")
    assert result.stderr.count("\n") == 1


def test_code_of_another_clone_is_told_in_one_line() -> None:
    Path("recipes").mkdir()
    assert CliRunner().invoke(cli.app, ["recipe"]).stderr == ""
    package = Path("src/lmlab")
    package.mkdir(parents=True)
    (package / "__init__.py").touch()
    result = CliRunner().invoke(cli.app, ["recipe"])
    assert result.exit_code == 0
    assert result.stderr.startswith("note: this is the lmlab of ")
    assert result.stderr.count("\n") == 1
    assert str(Path.cwd()) in result.stderr
    assert surroundings.other_project(package) == surroundings.other_project()
    assert surroundings.other_project(Path(surroundings.__file__).parent) == ""
