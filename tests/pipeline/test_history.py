"""Results in Git: an earlier one comes back, is made again bit for bit, and is handed on."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from ruamel.yaml import YAML

from lmlab.core.files import sha256

pytestmark = pytest.mark.pipeline
WEIGHTS = "data/model/weights.safetensors"


def hashes(workspace: Any) -> dict[str, str]:
    """What dvc.lock says of each output."""
    lock = YAML(typ="safe").load(workspace.path("dvc.lock"))
    return {out["path"]: out["md5"] for stage in lock["stages"].values() for out in stage["outs"]}


def test_an_earlier_result_comes_back_and_is_made_again_bit_for_bit(workspace: Any) -> None:
    """docs/running.md's "Going back": params and code change and are committed, and both ways lead
    back to what was before.
    """
    wanted, metrics = sha256(workspace.path(WEIGHTS)), workspace.json("results/metrics.json")
    workspace.set({"train.seed": 9})
    workspace.touch_code("src/lmlab/training/schedules/linear.py")
    workspace.run("dvc", "repro", "evaluate")
    workspace.run("git", "commit", "-qam", "later")
    assert sha256(workspace.path(WEIGHTS)) != wanted

    workspace.run("git", "checkout", "-q", "HEAD~1")
    workspace.run("dvc", "checkout")
    assert sha256(workspace.path(WEIGHTS)) == wanted
    assert workspace.json("results/metrics.json") == metrics
    assert workspace.status() == set()

    recorded = hashes(workspace)
    forced = workspace.run("dvc", "repro", "--force", "evaluate").stdout
    assert "Running stage 'train'" in forced
    assert "outputs taken from DVC's run-cache" not in forced
    assert sha256(workspace.path(WEIGHTS)) == wanted
    assert (
        hashes(workspace) == recorded
    )  # times and all: nothing in the lock differs from run to run
    assert workspace.run("git", "status", "--short").stdout == ""


def test_a_lock_from_another_machine_does_not_train_again_what_was_trained_here(
    workspace: Any,
) -> None:
    """Where a processor rounds otherwise, a commit's lock names weights that are nowhere here; this
    machine's own are.
    """
    lock = workspace.path("dvc.lock")
    own, weights = lock.read_text(), workspace.path(WEIGHTS).read_bytes()
    recorded = hashes(workspace)
    foreign = own
    for path in ("data/model", "data/snapshots", "data/training", "results/metrics.json"):
        foreign = foreign.replace(
            recorded[path],
            recorded[path][::-1].replace("rid.", "").ljust(32, "0") + ".dir" * ("data" in path),
        )
    assert foreign != own
    lock.write_text(foreign)
    workspace.run("git", "commit", "-qam", "made elsewhere")
    began = workspace.run("dvc", "repro").stdout
    assert "train: this was done before on this machine" in began
    assert "tokens of text" not in began  # what training says first
    assert workspace.path(WEIGHTS).read_bytes() == weights
    assert lock.read_text() == own
    assert workspace.reruns() == set()

    workspace.run("git", "checkout", "-q", ".")  # and once more
    assert lock.read_text() == foreign
    assert "tokens of text" not in workspace.run("dvc", "repro").stdout
    assert lock.read_text() == own


def test_experiments_go_to_a_bare_repository_and_a_folder_and_come_back_elsewhere(
    workspace: Any, tmp_path: Path
) -> None:
    """docs/running.md's "Sharing": one person pushes an experiment, another pulls it, with its
    weights, and applies it.
    """
    bare = tmp_path / "shelf.git"
    workspace.run("git", "init", "-q", "--bare", "-b", "main", str(bare))
    workspace.run("git", "remote", "add", "origin", str(bare))
    workspace.run("dvc", "remote", "add", "-d", "shelf", str(tmp_path / "shelf"))
    workspace.run("git", "commit", "-qam", "a remote")
    workspace.run("git", "push", "-q", "origin", "main")
    workspace.run(
        "dvc", "exp", "run", "-n", "wider", "-S", "models.transformer.width=32", "evaluate"
    )
    workspace.run("dvc", "exp", "push", "origin", "wider")

    clone = replace(workspace, folder=tmp_path / "clone")
    workspace.run("git", "clone", "-q", str(bare), str(clone.folder))
    assert "wider" in clone.run("dvc", "exp", "list", "origin").stdout
    clone.run("dvc", "exp", "pull", "origin", "wider")
    clone.run("dvc", "exp", "apply", "wider")
    assert clone.json("results/metrics.json") == workspace.json("results/metrics.json")
    assert sha256(clone.path(WEIGHTS)) == sha256(workspace.path(WEIGHTS))
    clone.run("dvc", "exp", "branch", "wider", "of-it")
    assert "width: 32" in clone.run("git", "show", "of-it:params.yaml").stdout
