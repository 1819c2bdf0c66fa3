"""Killed at any moment, interrupted, started with corrupted inputs: one clear line, and nothing is
lost.
"""

import errno
import hashlib
import multiprocessing
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

import psutil
import pytest

from lmlab.core import files
from lmlab.model.models import base as models
from lmlab.training import checkpoint

pytestmark = pytest.mark.pipeline

LONGER = {
    "train.steps": 400,
    "train.validate_every": 40,
    "train.checkpoint_seconds": 0.05,
    "models.transformer.dropout": 0.1,
}
OUTPUTS = ("data/model", "data/training", "data/snapshots")


def digest(workspace: Any) -> dict[str, str]:
    """Every file that training writes, by its hash."""
    files = [
        path
        for name in OUTPUTS
        for path in sorted(workspace.path(name).rglob("*"))
        if path.is_file()
    ]
    return {
        str(path.relative_to(workspace.folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in files
    }


def start(workspace: Any, *command: str) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        command,
        cwd=workspace.folder,
        env=workspace.environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )


def test_training_killed_at_random_moments_ends_in_the_same_bytes(inside: Any) -> None:
    """Each time in a process of its own, forked from this one, which has torch loaded."""
    workspace = inside.workspace
    workspace.set(LONGER)
    inside.run("train")
    expected = digest(workspace)
    # weights and model.json; the log; run.json and four snapshots; and SHA256SUMS in each of the
    # three folders
    assert len(expected) == 2 + 1 + 5 + 3
    rng = Random(0)
    scratch = workspace.path(".scratch")
    kills = 0
    for _ in range(12):
        for name in OUTPUTS:  # as DVC does before a stage starts
            shutil.rmtree(workspace.path(name), ignore_errors=True)
        process = multiprocessing.get_context("fork").Process(target=inside.run, args=("train",))
        process.start()
        until(
            lambda at_work=process: not at_work.is_alive() or list(scratch.glob("*/*.safetensors"))
        )
        time.sleep(rng.random() * 0.4)
        process.kill()
        process.join()
        kills += process.exitcode == -signal.SIGKILL
    inside.run("train")
    assert kills >= 2, "every run had ended before it was killed: nothing was tested"
    assert digest(workspace) == expected
    assert not list(scratch.glob("*"))


def until(true: Callable[[], Any], seconds: float = 120) -> None:
    deadline = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < deadline, "waited too long"
        time.sleep(0.02)


def test_training_stops_when_dvc_is_killed_and_goes_on_afterwards(inside: Any) -> None:
    workspace = inside.workspace
    workspace.set(LONGER | {"train.steps": 1500, "train.validate_every": 0})
    dvc = start(workspace, "dvc", "repro", "train")

    def training() -> list[psutil.Process]:
        children = psutil.Process(dvc.pid).children(recursive=True)
        return [child for child in children if "pipeline.train" in " ".join(child.cmdline())]

    until(training)
    at_work = training()
    until(lambda: list(workspace.path(".scratch").glob("*/*.safetensors")))
    os.kill(dvc.pid, signal.SIGKILL)
    dvc.wait()
    _, alive = psutil.wait_procs(at_work, timeout=15)
    for process in alive:
        process.kill()
    assert not alive, "training went on without its parent"
    assert "resuming from step" in workspace.run("dvc", "repro", "train").stdout
    resumed = digest(workspace)
    inside.run("train")
    assert digest(workspace) == resumed


def heed_ctrl_c() -> None:
    """As in a terminal: a shell's background jobs, and so what they start, ignore Ctrl-C."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def test_ctrl_c_is_one_line_and_the_run_goes_on(workspace: Any) -> None:
    workspace.set(LONGER | {"train.steps": 100_000})
    process = subprocess.Popen(
        ["python", "-m", "pipeline.train"],
        cwd=workspace.folder,
        env=workspace.environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=heed_ctrl_c,
    )
    try:
        deadline = time.monotonic() + 60
        while (
            not list(workspace.path(".scratch").glob("*/*.safetensors"))
            and time.monotonic() < deadline
        ):
            time.sleep(0.05)
        process.send_signal(signal.SIGINT)
        _, said = process.communicate(timeout=30)
    finally:
        process.kill()
    assert process.returncode == 130
    assert said.strip().splitlines() == [
        "interrupted: nothing is lost, run the same command again to resume"
    ]
    assert list(workspace.path(".scratch").glob("*/*.safetensors"))


def spoil_shard(workspace: Any) -> None:
    path = workspace.path("data/shards/train-00000.parquet")
    path.write_bytes(path.read_bytes()[:-100])


def other_tokenizer(workspace: Any) -> None:
    """One that is whole, but not that of the shards."""
    path = workspace.path("data/tokenizer/tokenizer.json")
    path.write_text(path.read_text().replace("{", "{ ", 1))
    files.write_sums(path.parent)


def other_model(workspace: Any) -> None:
    path = workspace.path("data/model/model.json")
    path.write_text(path.read_text().replace('"tokenizer_sha256": "', '"tokenizer_sha256": "0'))
    files.write_sums(path.parent)


def flip(name: str, share: float = 0.6) -> Any:
    """Change one bit of a file, somewhere in it."""

    def spoil(workspace: Any) -> None:
        path = workspace.path(name)
        content = bytearray(path.read_bytes())
        content[int(share * len(content))] ^= 1
        path.write_bytes(bytes(content))

    return spoil


def cut_log(workspace: Any) -> None:
    """Its last lines are gone, those left are whole."""
    path = workspace.path("data/training/log.jsonl")
    path.write_text("".join(path.read_text().splitlines(keepends=True)[:2]))


def cut_weights(workspace: Any) -> None:
    path = workspace.path("data/model/weights.safetensors")
    path.write_bytes(path.read_bytes()[:-100])


def cut_snapshot(workspace: Any) -> None:
    path = workspace.path("data/snapshots/step-00000000.safetensors")
    path.write_bytes(path.read_bytes()[:-100])


def remove(name: str) -> Any:
    return lambda workspace: workspace.path(name).unlink()


def file_for_folder(workspace: Any) -> None:
    shutil.rmtree(workspace.path("data/model"))
    workspace.path("data/model").write_text("mine")


def given_tokenizer(workspace: Any) -> None:
    workspace.set({"tokenizer.from": "data/tokenizer/tokenizer.json", "tokenizer.name": "byte"})


def local(text: bytes, **values: Any) -> Any:
    def write(workspace: Any) -> None:
        workspace.path("texts/mine.txt").write_bytes(text)
        workspace.set({"download.corpus": "local"} | values)

    return write


BAD: list[tuple[str, str, Any, str]] = [
    ("shard cut short", "train", spoil_shard, "was changed or cut short"),
    ("shard edited", "train", flip("data/shards/train-00000.parquet"), "was changed or cut short"),
    (
        "shard missing",
        "train",
        remove("data/shards/train-00000.parquet"),
        "train-00000.parquet is missing",
    ),
    ("manifest missing", "train", remove("data/shards/manifest.json"), "dvc repro shard"),
    ("manifest edited", "train", flip("data/shards/manifest.json"), "dvc repro --force shard"),
    (
        "sums missing",
        "evaluate",
        remove("data/model/SHA256SUMS"),
        "which vouches for weights.safetensors, is missing",
    ),
    ("tokenizer missing", "shard", remove("data/tokenizer/tokenizer.json"), "dvc repro tokenizer"),
    (
        "tokenizer edited",
        "train",
        flip("data/tokenizer/tokenizer.json"),
        "dvc repro --force tokenizer",
    ),
    ("tokenizer of other shards", "train", other_tokenizer, "made with another tokenizer"),
    ("model of another tokenizer", "evaluate", other_model, "trained with another tokenizer"),
    ("weights cut short", "evaluate", cut_weights, "is damaged"),
    ("weights edited", "evaluate", flip("data/model/weights.safetensors"), "is damaged"),
    ("model.json edited", "evaluate", flip("data/model/model.json"), "is damaged"),
    (
        "results edited",
        "report",
        flip("results/measures.json"),
        "measures.json is damaged; run `dvc repro",
    ),
    (
        "a table edited",
        "report",
        flip("results/training.csv"),
        "training.csv is damaged; run `dvc repro --force evaluate`",
    ),
    (
        "probes edited",
        "report",
        flip("data/probes/probes.parquet"),
        "is damaged; run `dvc repro --force probe`",
    ),
    (
        "a file for a folder",
        "train",
        file_for_folder,
        "data/model is a file, or a link to nowhere, where a folder should be",
    ),
    (
        "a tokenizer of another kind",
        "tokenizer",
        given_tokenizer,
        "holds a character tokenizer, no byte; set tokenizer.name",
    ),
    (
        "a tokenizer that is not there",
        "tokenizer",
        lambda w: w.set({"tokenizer.from": "none.json"}),
        "no file none.json",
    ),
    (
        "a seed too large",
        "download",
        lambda w: w.set({"train.seed": 2**64}),
        "train.seed: 18446744073709551616 is out of",
    ),
    ("weights missing", "evaluate", remove("data/model/weights.safetensors"), "dvc repro train"),
    ("corpus missing", "tokenizer", remove("data/corpus/train.parquet"), "dvc repro download"),
    ("corpus edited", "tokenizer", flip("data/corpus/train.parquet"), "dvc repro --force download"),
    ("corpus edited", "shard", flip("data/corpus/test.parquet"), "dvc repro --force download"),
    ("log missing", "evaluate", remove("data/training/log.jsonl"), "dvc repro train"),
    ("log cut short at a line's end", "evaluate", cut_log, "log.jsonl is damaged"),
    (
        "snapshot cut short",
        "probe",
        cut_snapshot,
        "step-00000000.safetensors is missing or damaged; run `dvc repro --force",
    ),
    (
        "snapshot edited",
        "probe",
        flip("data/snapshots/step-00000000.safetensors"),
        "is missing or damaged",
    ),
    ("snapshots' record missing", "probe", remove("data/snapshots/run.json"), "dvc repro train"),
    (
        "unknown probe",
        "train",
        lambda w: w.set({"probe.probes": ["spectar"]}),
        "'spectar' in probes; did you mean spectra?",
    ),
    ("empty corpus", "download", local(b""), "is empty"),
    ("not UTF-8", "download", local(b"caf\xe9 noir\n" * 50), "is not UTF-8"),
    (
        "no file",
        "download",
        lambda workspace: workspace.set({"download.corpus": "local"}),
        "no file matches",
    ),
    (
        "one document split by document",
        "download",
        local(b"words\n" * 50, **{"download.split": "document"}),
        "split: tail",
    ),
    (
        "typo",
        "evaluate",
        lambda workspace: workspace.path("params.yaml").write_text("trian: {}\n"),
        "did you mean train?",
    ),
    (
        "heads",
        "download",
        lambda w: w.set({"layers.attention.multi_head.heads": 3}),
        "do not divide the model's width 16",
    ),
]


@pytest.mark.parametrize(
    ("name", "stage", "spoil", "message"), BAD, ids=[f"{stage}: {name}" for name, stage, *_ in BAD]
)
def test_what_a_user_can_get_wrong_is_one_line_and_loses_nothing(
    inside: Any, name: str, stage: str, spoil: Any, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    spoil(inside.workspace)
    data = inside.workspace.path("data")
    before = {path: path.read_bytes() for path in sorted(data.rglob("*")) if path.is_file()}
    said = inside.refused(stage, capsys)
    assert message in said
    assert said.startswith("error: ")
    assert len(said.strip().splitlines()) == 1
    assert {path: path.read_bytes() for path in sorted(data.rglob("*")) if path.is_file()} == before


def test_a_stage_run_by_hand_tells_a_mistake_in_one_line_and_ends_with_2(workspace: Any) -> None:
    spoil_shard(workspace)
    done = workspace.run("python", "-m", "pipeline.train", check=False)
    assert done.returncode == 2
    assert "was changed or cut short" in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1


def test_a_python_without_the_packages_is_told_to_activate_the_environment(workspace: Any) -> None:
    done = workspace.run("python", "-S", "-m", "pipeline.train", check=False)
    assert done.returncode == 2
    assert "source .venv/bin/activate" in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1


def test_a_text_shorter_than_a_context_is_refused(
    inside: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    local(b"Too short to learn from, alas.", **{"download.test": 0.0, "train.context": 64})(
        inside.workspace
    )
    inside.run("download", "tokenizer", "shard")
    assert "fewer than one context of 64" in inside.refused("train", capsys)


def test_a_full_disk_is_one_line_and_the_old_outputs_stay(
    inside: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A writer is replaced by one that writes a little and then finds the disk full, of the weights
    and of a checkpoint.
    """

    def full(tensors: Any, path: Path, **_: Any) -> None:
        Path(path).write_bytes(b"half")
        raise OSError(errno.ENOSPC, "No space left on device")

    before = digest(inside.workspace)
    inside.workspace.set({"train.checkpoint_seconds": 0.00001})
    for module in (models, checkpoint):
        with monkeypatch.context() as patched:
            patched.setattr(module, "save_file", full)
            said = inside.refused("train", capsys)
        assert said.strip().splitlines() == [said.strip()]
        assert said.startswith("error: the disk is full")
        assert digest(inside.workspace) == before
        assert not list(inside.workspace.path("data").glob(".*.partial"))
