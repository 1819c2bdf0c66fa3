"""studies/README.md's "Make one", tried as it is written."""

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
    "schedules.linear.warmup": 1,
}


def test_a_copy_of_the_template_runs_and_only_what_is_changed_runs_again(workspace: Any) -> None:
    section = (
        (PROJECT / "studies" / "README.md").read_text(encoding="utf-8").split("## Make one\n")[1]
    )
    (console,) = re.findall(r"```console\n(.*?)```", section, re.S)
    copy, rename, look, publish = (line[2:].split("#")[0].split() for line in console.splitlines())
    shutil.copytree(PROJECT / "studies" / "template", workspace.path("studies/template"))
    assert workspace.status() == set()  # DVC sees no stage in it

    workspace.run(*copy)
    workspace.run(*rename)
    stages = workspace.path("studies/mine/dvc.yaml")
    written, count = re.subn(r"(folder:) \S+", r"\1 studies/mine", stages.read_text())
    assert count == 1
    stages.write_text(written)
    set_study(workspace.path("studies/mine/params.yaml"), TINY)
    own = (
        "env",
        "PYTHONPATH=src",
        sys.executable,
    )  # as in a clone of its own, whose code is the one that is installed
    assert look[:2] == ["lmlab", "study"]
    assert (
        "linear"
        in workspace.run(*own, "-c", "from lmlab.cli import main; main()", *look[1:]).stdout
    )

    assert arms_run(workspace, publish) == ["cosine", "linear"]
    assert {path.stem for path in workspace.path("studies/mine/points").iterdir()} == {
        "linear",
        "cosine",
    }
    assert workspace.path("studies/mine/summary.csv").read_text().count("\n") == 3
    assert workspace.path("studies/mine/charts/final.svg").exists()
    assert arms_run(workspace, publish) == []
    params = workspace.path("studies/mine/params.yaml")
    params.write_text(
        params.read_text().replace("train.schedule: cosine", "train.schedule: constant")
    )
    assert arms_run(workspace, publish) == ["cosine"]


def set_study(params: Path, changes: dict[str, Any]) -> None:
    """Make all runs small, both whole and quick."""
    yaml = YAML()
    tree = yaml.load(params.read_text())
    tree["study"]["changes"].update(changes)
    tree["study"].update(sweep_seeds=[0], seeds=[0], processes=1)
    tree["quick"].update(seeds=[0], changes={})
    with params.open("w") as file:
        yaml.dump(tree, file)


def arms_run(workspace: Any, command: list[str]) -> list[str]:
    """The arms whose stage a command ran."""
    return sorted(re.findall(r"Running stage '\S+arm@(\w+)'", workspace.run(*command).stdout))
