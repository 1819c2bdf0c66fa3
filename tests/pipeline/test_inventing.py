"""docs/parts.md's "Invent a learning rule", tried as it is written."""

import re
import shutil
import sys
from typing import Any

import pytest
from ruamel.yaml import YAML
from small import PROJECT

pytestmark = pytest.mark.pipeline


def blocks() -> dict[str, str]:
    """The section's blocks of code by their language."""
    text = (PROJECT / "docs" / "parts.md").read_text(encoding="utf-8")
    section = text.split("## Invent a learning rule\n")[1].split("\n## ")[0]
    return dict(reversed(re.findall(r"```(\w+)\n(.*?)```", section, re.S)))


def test_a_rule_invented_by_the_documents_trains_and_keeps_the_contract(workspace: Any) -> None:
    written = blocks()
    workspace.path("src/lmlab/training/learning_rules/mine.py").write_text(written["python"])
    workspace.merge(written["yaml"])
    assert workspace.status() <= {"probe", "report"}  # nobody uses it yet
    before = workspace.path("data/model/weights.safetensors").read_bytes()
    commands = [line[2:].split("#")[0].split() for line in written["console"].splitlines()]

    assert commands[0] == ["dvc", "exp", "run", "-S", "train.learning_rule=mine"]
    workspace.run(*commands[0], "train")  # the stages after it have nothing to do with the rule
    learned = workspace.path("data/model/weights.safetensors").read_bytes()
    assert learned != before
    workspace.set(
        {"learning_rules.mine.power": 0.0}
    )  # at which it is backprop, as its docstring says
    workspace.run("python", "-m", "pipeline.train")
    assert workspace.path("data/model/weights.safetensors").read_bytes() == before

    assert commands[1][0] == "pytest"
    shutil.copytree(PROJECT / "tests", workspace.path("tests"))
    own = (
        "env",
        "PYTHONPATH=src",
        sys.executable,
    )  # as in a clone of its own, whose code is the one that is installed
    checked = workspace.run(*own, "-m", *commands[1], "-p", "no:cacheprovider")
    assert re.search(r"\b\d\d passed", checked.stdout), checked.stdout[-500:]

    assert commands[2][:3] == ["lmlab", "study", "learning_rules"]
    shutil.copytree(PROJECT / "studies", workspace.path("studies"))
    yaml, path = YAML(), workspace.path("studies/learning_rules/params.yaml")
    study = yaml.load(path)
    study["quick"] = {"seeds": [0], "sweep_seeds": [100, 101], "changes": {"train.steps": 2}}
    study["arms"] = {
        name: study["arms"][name] for name in ("backprop", "forward_forward", "noprop")
    }
    with path.open("w") as file:
        yaml.dump(study, file)
    shown = workspace.run(*own, "-c", "from lmlab.cli import main; main()", *commands[2][1:])
    assert "mine" in shown.stdout
