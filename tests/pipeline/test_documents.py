"""The documents' commands and code, run as they are written in a small finished project."""

import re
import shutil
import sys
from typing import Any

import documents
import pandas as pd
import pytest
from small import PROJECT
from typer.testing import CliRunner

from lmlab import cli

pytestmark = pytest.mark.pipeline
RUN = {
    page: [block for block in documents.blocks(page, "console") if not block.not_run]
    for page in documents.guides()
}


@pytest.mark.parametrize("page", [page for page, blocks in RUN.items() if blocks])
def test_every_command_that_is_not_marked_otherwise_runs(
    page: str, workspace: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(workspace.folder)
    if any("studies/" in block.text for block in RUN[page]):
        shutil.copytree(PROJECT / "studies", workspace.path("studies"))
    for block in RUN[page]:
        for program, *words in block.commands:
            if program == "lmlab":  # in this process, which has torch loaded
                done = CliRunner().invoke(cli.app, words)
                assert done.exit_code == 0, f"lmlab {' '.join(words)}: {done.output[-1000:]}"
                assert done.output
            else:
                workspace.run(program, *words)


def test_the_code_for_notebooks_runs(
    workspace: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(workspace.folder)
    namespace: dict[str, Any] = {}
    for block in documents.blocks("docs/python.md", "python"):
        exec(compile(block.text, block.page, "exec"), namespace)
    shown = capsys.readouterr().out
    measured = workspace.json("results/measures.json")
    assert f"{measured['parameters']} parameters" in shown
    assert str(measured["validation"]["tokens"]) in shown
    assert 0 < namespace["scored"].nats_per_token < 10
    assert len(namespace["rises"]) == 1  # the small model has one block
    assert namespace["rises"][0] != 0
    assert namespace["patched"] == [0]  # behind the last block
    assert "<table" in namespace["bars"].to_html()
    assert "<table" in namespace["heads"].to_html()


# ------------------------------------------------------------------ parts


def added(workspace: Any, section: str) -> list[list[str]]:
    """Do what a section of docs/parts.md says, and return its commands."""
    text = documents.read("docs/parts.md").split(f"\n## {section}\n")[1].split("\n## ")[0]
    code, block, console = (match for match in documents.BLOCK.finditer(text))
    target = re.search(r"`(src/lmlab/[\w/]+\.py)`:", text)
    assert target
    workspace.path(target[1]).write_text(code[2])
    workspace.merge(block[2])
    return documents.Block("docs/parts.md", console[1], console[2], "").commands


def test_parts_are_added_by_the_documents_alone(workspace: Any) -> None:
    """Two layers, a probe and a corpus in one project, to be checked and run together."""
    before = workspace.path("data/model/weights.safetensors").read_bytes()
    files, names, settings = [], [], []
    for section in ("A layer", "An attention layer", "A probe", "A corpus"):
        (program, *words), run = added(workspace, section)
        assert (program, *run[:4]) == ("pytest", "dvc", "exp", "run", "-S")
        files += words[: words.index("-k")]
        names.append(words[-1])
        settings += run[3:]
    shutil.copytree(PROJECT / "tests", workspace.path("tests"))
    own = ("env", "PYTHONPATH=src", sys.executable, "-m", "pytest", "-p", "no:cacheprovider")
    passed = workspace.run(*own, *dict.fromkeys(files), "-k", " or ".join(names)).stdout
    assert re.search(r"\b\d\d+ passed", passed), passed[-500:]
    assert "failed" not in passed

    workspace.run("dvc", "exp", "run", *settings, "probe")
    assert workspace.path("data/model/weights.safetensors").read_bytes() != before
    readings = pd.read_parquet(workspace.path("data/probes/probes.parquet"))
    assert set(readings["probe"]) == {"weight_norm"}
    text = pd.read_parquet(workspace.path("data/corpus/validation.parquet"))["text"][0]
    left, right = text.split("\n")[1].split("=")
    assert sum(map(int, left.split("+"))) == int(right)
