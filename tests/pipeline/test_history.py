"""Results in Git: an earlier one comes back, is made again bit for bit, and is handed on."""

from pathlib import Path
from typing import Any

import pytest
from ruamel.yaml import YAML

from lmlab.files import sha256

pytestmark = pytest.mark.pipeline
WEIGHTS = "data/model/weights.safetensors"


def hashes(workspace: Any) -> dict[str, str]:
    """What dvc.lock says of each output."""
    lock = YAML(typ="safe").load(workspace.path("dvc.lock"))
    return {out["path"]: out["md5"] for stage in lock["stages"].values() for out in stage["outs"]}


def test_an_earlier_result_comes_back_and_is_made_again_bit_for_bit(workspace: Any) -> None:
    """README's "Go back": an experiment is committed, params and code change, and both ways lead back to it."""
    workspace.run("dvc", "exp", "run", "--temp", "-n", "slow", "-S", "optimizers.adamw.learning_rate=0.001")
    workspace.run("dvc", "exp", "apply", "slow")
    workspace.run("git", "commit", "-qam", "slow")
    wanted, metrics = sha256(workspace.path(WEIGHTS)), workspace.json("results/metrics.json")

    workspace.set({"train.seed": 9})
    workspace.touch_code("src/lmlab/schedules/linear.py")
    workspace.run("dvc", "repro", "evaluate")
    workspace.run("git", "commit", "-qam", "later")
    assert sha256(workspace.path(WEIGHTS)) != wanted

    workspace.run("git", "checkout", "-q", "HEAD~1")
    workspace.run("dvc", "checkout")
    assert sha256(workspace.path(WEIGHTS)) == wanted
    assert workspace.json("results/metrics.json") == metrics

    recorded = hashes(workspace)
    assert "Running stage 'train'" in workspace.run("dvc", "repro", "--force").stdout
    assert sha256(workspace.path(WEIGHTS)) == wanted
    assert hashes(workspace) == recorded


def test_experiments_go_to_a_bare_repository_and_a_folder_and_come_back_elsewhere(workspace: Any, tmp_path: Path) -> None:
    """README's "Share": one person pushes an experiment, another pulls it, with its weights, and applies it."""
    bare = tmp_path / "shelf.git"
    workspace.run("git", "init", "-q", "--bare", "-b", "main", str(bare))
    workspace.run("git", "remote", "add", "origin", str(bare))
    workspace.run("dvc", "remote", "add", "-d", "shelf", str(tmp_path / "shelf"))
    workspace.run("git", "commit", "-qam", "a remote")
    workspace.run("git", "push", "-q", "origin", "main")
    workspace.run("dvc", "exp", "run", "-n", "byte-wise", "-S", "tokenizer.name=byte", "evaluate")
    workspace.run("dvc", "exp", "push", "origin", "byte-wise")

    clone = type(workspace)(tmp_path / "clone", workspace.home)
    workspace.run("git", "clone", "-q", str(bare), str(clone.folder))
    assert "byte-wise" in clone.run("dvc", "exp", "list", "origin").stdout
    clone.run("dvc", "exp", "pull", "origin", "byte-wise")
    clone.run("dvc", "exp", "apply", "byte-wise")
    assert clone.json("results/metrics.json") == workspace.json("results/metrics.json")
    assert sha256(clone.path(WEIGHTS)) == sha256(workspace.path(WEIGHTS))
    clone.run("dvc", "exp", "branch", "byte-wise", "bytes")
    assert "name: byte" in clone.run("git", "show", "bytes:params.yaml").stdout
