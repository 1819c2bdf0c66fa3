"""Going on from a finished run, as its users do: named, brought, trained on, compared."""

import hashlib
import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.pipeline

OWN = "import sys; sys.path.insert(0, 'src'); from lmlab import cli; cli.main()"
CONSTANT = {"train.schedule": "constant", "schedules.constant.warmup": 0}
WEIGHTS = "data/model/weights.safetensors"


def lmlab(workspace: Any, *words: str) -> str:
    """What a command prints."""
    done = workspace.run("python", "-c", OWN, *words)
    return str(done.stdout)


def refused(workspace: Any, *words: str) -> str:
    """The one line with which a command is refused."""
    done = workspace.run("python", "-c", OWN, *words, check=False)
    assert done.returncode == 2, done.stdout
    (line,) = done.stderr.strip().splitlines()
    return str(line)


def commit(workspace: Any) -> str:
    workspace.run("git", "add", "-A")
    workspace.run("git", "commit", "-q", "-m", "a run")
    return str(workspace.run("git", "rev-parse", "HEAD").stdout.strip())


@pytest.fixture
def constant(workspace: Any) -> Any:
    """The workspace with a run at a constant rate, committed."""
    workspace.set(CONSTANT)
    workspace.run("dvc", "repro", "evaluate")
    commit(workspace)
    return workspace


def test_a_run_goes_on_through_dvc_in_the_bytes_of_one_that_did_not_stop(constant: Any) -> None:
    """And only what the start affects runs again; from scratch again, nothing does."""
    first = constant.json("data/model/model.json")
    said = lmlab(constant, "start", "main")
    assert f'start.model: "" -> {first["weights_sha256"]}' in said
    assert constant.reruns() == {"start", "tokenizer", "train", "evaluate", "probe", "report"}
    second = constant.json("data/model/model.json")
    assert (second["steps"], second["tokens"]) == (2 * first["steps"], 2 * first["tokens"])
    assert [each["steps"] for each in second["earlier"]] == [first["steps"]]
    assert constant.reruns() == set()

    measured = constant.json("results/measures.json")
    start = measured["start"]
    assert start["tokens"] == first["tokens"]
    assert start["flops"] == first["flops"] > 0
    assert start["bits_per_byte_at_once"] == start["bits_per_byte_before"]  # the same text
    assert measured["tokens_seen"] == second["tokens"]
    assert measured["learning_curve"]["flops"] == second["flops"]
    assert "had been trained on text before" in json.dumps(measured["left_out"])

    constant.run(
        *("dvc", "exp", "run", "--temp", "-n", "whole", "evaluate"),
        *("-S", "start.commit=", "-S", "start.model=", "-S", f"train.steps={second['steps']}"),
    )
    assert f"start.model={second['weights_sha256']}" in lmlab(
        constant, "start", "whole", "--options"
    )

    assert "start.commit" in lmlab(constant, "start")
    constant.run("dvc", "repro", "evaluate")  # from DVC's run-cache
    assert constant.json("data/model/model.json") == first


def test_an_experiment_goes_on_from_another_one_and_is_compared_with_what_both_cost(
    constant: Any,
) -> None:
    constant.run("dvc", "exp", "run", "--temp", "-n", "first", "-S", "train.seed=3", "evaluate")
    options = lmlab(constant, "start", "first", "--options").split()
    assert constant.run("git", "status", "--porcelain").stdout == ""  # nothing was written
    for name, changes in (
        ("lion", ["train.optimizer=lion"]),
        ("bible", ["corpora.grammar.seed=5"]),
    ):
        words = [word for change in [*changes, "train.seed=3"] for word in ("-S", change)]
        constant.run("dvc", "exp", "run", "--temp", "-n", name, *options, *words, "evaluate")
    chained = lmlab(constant, "start", "lion", "--options").split()
    constant.run(
        "dvc", "exp", "run", "--temp", "-n", "third", *chained, "-S", "train.seed=3", "evaluate"
    )
    said = lmlab(constant, "compare", "first", "third")
    assert "unfair: tokens seen in training" in said
    assert "1,152 against the baseline's 384" in said  # 3 runs of 6 steps of 4 windows of 16
    for name, seed in (("first", 4), ("lion", 4)):  # another start, the same variant
        changes = ["-S", f"train.seed={seed}"]
        if name == "lion":
            start = lmlab(constant, "start", "first-4", "--options").split()
            changes += [*start, "-S", "train.optimizer=lion"]
        constant.run("dvc", "exp", "run", "--temp", "-n", f"{name}-4", *changes, "evaluate")
    said = lmlab(constant, "compare", "first", "first-4", "lion", "lion-4")
    assert "2 runs: lion, lion-4" in said
    assert "3 runs: first, first-4, HEAD" in said
    assert "start=grammar:6:" in said


def test_a_run_comes_from_another_clone_and_stays_when_that_is_gone(
    constant: Any, tmp_path: Path
) -> None:
    clone = replace(constant, folder=tmp_path / "clone")
    constant.run("git", "clone", "-q", str(constant.folder), str(clone.folder))
    clone.run("git", "commit", "-q", "--allow-empty", "-m", "its own")
    line = refused(clone, "start", "HEAD~1")
    assert "DVC's cache lacks data/model, data/tokenizer, data/state" in line
    assert "git worktree add" in line
    constant.set({"train.seed": 7})
    constant.run("dvc", "repro", "evaluate")
    made = commit(constant)
    weights = constant.json("data/model/model.json")["weights_sha256"]
    said = lmlab(clone, "start", str(constant.folder))
    assert made in said
    assert weights in said
    shutil.rmtree(constant.folder)
    clone.run("git", "gc", "--prune=now", "--quiet")
    clone.run("dvc", "repro", "train")
    assert [each["commit"] for each in clone.json("data/model/model.json")["earlier"]] == [made]


def test_a_run_goes_on_from_a_folder_for_transformers(constant: Any) -> None:
    """The same bytes begin; the optimizer anew; what the first run cost is counted."""
    first = constant.json("data/model/model.json")
    begun = {
        name: (constant.folder / name).read_bytes()
        for name in ("data/model/model.json", WEIGHTS, "data/tokenizer/tokenizer.json")
    }
    lmlab(constant, "export", "huggingface", "--out", "taken")
    said = lmlab(constant, "start", "taken")
    assert f'start.model: "" -> {first["weights_sha256"]}' in said
    assert "start.optimizer_state: auto -> anew" in said
    constant.run("dvc", "repro", "evaluate")
    for name, content in begun.items():
        brought = constant.folder / "data" / "start" / Path(name).relative_to("data")
        assert brought.read_bytes() == content
    second = constant.json("data/model/model.json")
    assert second["tokens"] == 2 * first["tokens"]
    assert [each["flops"] for each in second["earlier"]] == [first["flops"]]
    assert lmlab(constant, "start", "taken") == "params.yaml names this start already\n"

    for name in ("config.json", "lmlab.json"):
        (constant.folder / "taken" / name).unlink()
    assert "no clone of a project with a run" in refused(constant, "start", "taken")


def test_what_the_cache_lacks_is_fetched_from_the_remote(constant: Any, tmp_path: Path) -> None:
    constant.run("dvc", "remote", "add", "-d", "shelf", str(tmp_path / "shelf"))
    made = commit(constant)
    constant.run("dvc", "push")
    clone = replace(constant, folder=tmp_path / "clone")
    constant.run("git", "clone", "-q", str(constant.folder), str(clone.folder))
    lmlab(clone, "start", made)
    clone.run("dvc", "repro", "start")
    assert clone.json("data/start/start.json")["commit"] == made


def test_a_run_gets_another_tokenizer_and_one_that_has_grown(constant: Any) -> None:
    """Only what the start affects runs again, and the loss before and at once is measured."""
    first = constant.json("data/model/model.json")
    lmlab(constant, "start", "main")
    constant.set({"start.migration": "spelled_n_gram", "tokenizer.name": "bpe"})
    affected = {"start", "tokenizer", "shard", "train", "evaluate", "probe", "report"}
    assert constant.reruns() == affected
    second = constant.json("data/model/model.json")
    assert second["tokenizer_sha256"] != first["tokenizer_sha256"]
    assert (second["steps"], second["tokens"]) == (2 * first["steps"], 2 * first["tokens"])
    start = constant.json("results/measures.json")["start"]
    assert start["bits_per_byte_at_once"] != start["bits_per_byte_before"]
    assert constant.reruns() == set()
    commit(constant)

    constant.path("more.txt").write_text("the quick brown fox jumps over the lazy dogs. " * 9)
    grown = ["grow", "data/tokenizer/tokenizer.json", "more.txt", "--tokens", "5"]
    lmlab(constant, *grown, "--out", "grown.json")
    lmlab(constant, "start", "main")
    constant.set({"tokenizer.from": "grown.json", "start.migration": "spelled"})
    constant.run("dvc", "repro", "evaluate")
    third = constant.json("data/model/model.json")
    assert third["vocabulary_size"] == second["vocabulary_size"] + 5
    assert len(third["earlier"]) == 2

    assert "start.migration: spelled -> identity" in lmlab(constant, "start")


def test_the_weights_between_two_runs_are_scored(constant: Any) -> None:
    constant.run("dvc", "exp", "run", "--temp", "-n", "other", "-S", "train.seed=3", "evaluate")
    lmlab(constant, "interpolate", "main", "other", "--points", "3", "--out", "between.json")
    found = constant.json("between.json")
    assert found["share_of_the_second"] == [0.0, 0.5, 1.0]
    first, middle, second = found["bits_per_byte"]
    log = constant.path("data/training/log.jsonl").read_text().splitlines()
    last = json.loads(log[-1])["validation_bits_per_byte"]
    assert first == pytest.approx(last, rel=1e-6)
    assert found["barrier"] == pytest.approx(max(0, middle - (first + second) / 2))
    assert found["gain"] == pytest.approx(min(first, second) - min(first, middle, second))
    same = lmlab(constant, "interpolate", "main", "main", "--points", "2")
    assert "barrier above the straight line: 0.0000" in same
    constant.run(
        *("dvc", "exp", "run", "--temp", "-n", "wide", "-S", "models.transformer.width=24"),
        *("-S", "layers.attention.multi_head.heads=2", "evaluate"),
    )
    assert "wide has other parts than main" in refused(constant, "interpolate", "main", "wide")


def test_a_run_grows_and_what_it_computes_stays(constant: Any) -> None:
    first = constant.json("data/model/model.json")
    lmlab(constant, "start", "main")
    blocks, width = first["size"]["blocks"], first["size"]["width"]
    bigger = {"models.transformer.depth": 2 * blocks, "models.transformer.width": width}
    constant.set({"start.growth": "interleaved", **bigger}, must_change=False)
    affected = {"start", "tokenizer", "train", "evaluate", "probe", "report"}
    assert constant.reruns() == affected
    second = constant.json("data/model/model.json")
    assert second["size"]["blocks"] == 2 * blocks
    assert second["flops"] > 2 * first["flops"]
    start = constant.json("results/measures.json")["start"]
    assert start["bits_per_byte_at_once"] == start["bits_per_byte_before"]
    for changes, said in (
        ({"start.growth": "interleave"}, "there is no 'interleave' in growths"),
        ({"start.growth": ["wider_layers"]}, "wider_layers has nothing to do"),
        ({"models.transformer.width": 2 * width}, "cannot reach models.transformer.width"),
        ({"start.commit": "", "start.model": ""}, "interleaved needs a smaller model"),
    ):
        before = constant.path("params.yaml").read_text()
        constant.set(changes)
        line = refused(constant, "check")
        assert said in line, line
        constant.path("params.yaml").write_text(before)


def test_what_cannot_be_gone_on_from_is_refused_before_any_work(constant: Any) -> None:
    assert "no run 'mian': no experiment, branch, commit or folder; did you mean main?" in refused(
        constant, "start", "mian"
    )
    assert "texts is no clone of a project with a run" in refused(constant, "start", "texts")
    constant.run("dvc", "exp", "run", "--temp", "-n", "main", "-S", "train.seed=9", "evaluate")
    line = refused(constant, "start", "main")
    assert "main is 2 runs" in line
    assert "(experiment)" in line
    assert "name one by its commit" in line
    lost = {"train.optimizer": "sgd", "optimizers.sgd.learning_rate": 1e30, "train.clip": 0.0}
    words = [word for key, value in lost.items() for word in ("-S", f"{key}={value}")]
    constant.run("dvc", "exp", "run", "--temp", "-n", "lost", *words, "evaluate")
    assert "lost cannot be gone on from: its training diverged" in refused(
        constant, "start", "lost"
    )

    constant.set({"train.seed": 11})
    constant.run("git", "commit", "-qam", "params that were not run")
    line = refused(constant, "start", "HEAD")
    assert "has not been run with its params (train.seed: 11; its run had 0)" in line
    constant.run("git", "reset", "-q", "--soft", "HEAD~1")
    constant.run("dvc", "repro", "train")
    assert "holds a run that is not committed" in refused(constant, "start", ".")
    constant.run("git", "checkout", "-q", ".")
    constant.run("dvc", "checkout", "-q")

    lmlab(constant, "start", "HEAD")
    for changes, said in (
        (
            {"start.commit": "main"},
            "start.commit: takes a hash in full, which `lmlab start NAME` writes",
        ),
        ({"start.commit": "1" * 40}, "this repository has no commit 1111"),
        ({"start.commit": ""}, "start needs both its commit and its model"),
        ({"start.model": "1" * 64}, "start.model is not the model of"),
        ({"models.transformer.depth": 3}, "models.transformer.depth: 3 (the start's: 1)"),
        (
            {"tokenizer.name": "byte"},
            "tokenizer.name: byte is not the start's, character; set it back, or start.migration to"
            " how rows of new tokens come about (mean, random, spelled, spelled_n_gram)",
        ),
        ({"start.migration": "spelt"}, "there is no 'spelt' in migrations"),
        (
            {"start.commit": "", "start.model": "", "start.migration": "mean"},
            "start.migration: mean needs a model that has another tokenizer",
        ),
        (
            {"start.commit": "", "start.model": "", "start.optimizer_state": "anew"},
            "start.optimizer_state: anew needs a run to go on from",
        ),
        (
            {"tokenizer.from": "data/tokenizer/tokenizer.json"},
            "tokenizer.from: a run that goes on has the tokenizer of its start",
        ),
    ):
        before = constant.path("params.yaml").read_text()
        constant.set(changes)
        line = refused(constant, "check")
        assert said in line, line
        constant.path("params.yaml").write_text(before)

    constant.run("dvc", "repro", "start")
    held = constant.path("data/start/tokenizer/tokenizer.json")
    held.chmod(0o644)
    held.write_text('{"tokenizer": 5')
    lmlab(constant, "check")  # which reads the cache, then; the stage `start` mends the folder
    state = constant.path("data/state/state.safetensors")
    digest = hashlib.md5(state.read_bytes()).hexdigest()
    object_ = constant.path(f".dvc/cache/files/md5/{digest[:2]}/{digest[2:]}")
    object_.chmod(0o644)
    object_.write_bytes(b"junk")
    assert "in DVC's cache is damaged" in refused(constant, "start", "HEAD")
