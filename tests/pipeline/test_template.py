"""A copy of studies/template, run as studies/README.md says: only what is changed runs again."""

import re
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
from ruamel.yaml import YAML
from small import PROJECT

pytestmark = pytest.mark.pipeline
TINY = {
    "models.transformer.width": 16,
    "train.steps": 3,
    "train.batch": 2,
    "train.context": 16,
    "evaluate.stride": 16,
    "schedules.linear.warmup": 1,
    "schedules.cosine.warmup": 1,
}
# as in a clone of its own, whose code is the one that is installed
LMLAB = ("env", "PYTHONPATH=src", sys.executable, "-c", "from lmlab.cli import main; main()")


def test_a_copy_of_the_template_runs_and_only_what_is_changed_runs_again(workspace: Any) -> None:
    text = (PROJECT / "studies" / "README.md").read_text(encoding="utf-8")
    section = text.split("## Make one\n")[1]
    (console,) = re.findall(r"```console\n(.*?)```", section, re.S)
    copy, look, publish = (line[2:].split("#")[0].split() for line in console.splitlines())
    shutil.copytree(PROJECT / "studies" / "template", workspace.path("studies/template"))
    assert workspace.status() == set()  # DVC sees no stage in it

    workspace.run(*copy)
    study = workspace.path("studies/mine")
    make_small(study / "params.yaml", TINY)
    assert look[:2] == publish[:2] == ["lmlab", "study"]
    assert "linear" in workspace.run(*LMLAB, *look[1:]).stdout
    assert (study / "tried" / "summary.csv").exists()
    assert not (study / "points").exists()

    assert runs(workspace, publish) == {"linear": 7, "cosine": 7}
    assert {path.stem for path in (study / "points").iterdir()} == {"linear", "cosine"}
    assert (study / "summary.csv").read_text().count("\n") == 3
    assert (study / "charts" / "final.svg").exists()
    assert runs(workspace, publish) == {}
    params = study / "params.yaml"
    params.write_text(params.read_text().replace("schedule: cosine", "schedule: constant"))
    check = [*publish, "--check"]
    stale = workspace.run(*LMLAB, *check[1:], check=False)
    assert stale.returncode == 1
    assert [line.split(": ")[1] for line in stale.stdout.splitlines()] == ["cosine"]
    assert runs(workspace, publish) == {"cosine": 7}
    assert "what a run would give" in workspace.run(*LMLAB, *check[1:]).stdout


def make_small(params: Path, changes: dict[str, Any]) -> None:
    """Make all runs small, both whole and quick."""
    yaml = YAML()
    tree = yaml.load(params.read_text())
    tree["study"]["changes"].update(changes)
    tree["study"].update(seeds=[0], processes=1)
    tree["quick"].update(seeds=[0], changes={"train.steps": 2})
    with params.open("w") as file:
        yaml.dump(tree, file)


def runs(workspace: Any, command: list[str]) -> dict[str, int]:
    """How many runs a command made of each arm: three rates with two seeds, and one at the best."""
    lines = workspace.run(*LMLAB, *command[1:]).stdout.splitlines()
    made = [line.split(": ")[1] for line in lines if "bits/byte" in line and line.count(": ") > 3]
    return {arm: made.count(arm) for arm in made}
