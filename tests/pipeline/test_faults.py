"""Killed at any moment, interrupted, started with spoilt inputs: one clear line, and nothing is lost."""

import hashlib
import os
import shutil
import signal
import subprocess
import time
from pathlib import Path
from random import Random
from typing import Any

import psutil
import pytest

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
    files = [path for name in OUTPUTS for path in sorted(workspace.path(name).rglob("*")) if path.is_file()]
    return {str(path.relative_to(workspace.folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def start(workspace: Any, *command: str) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        command, cwd=workspace.folder, env=workspace.environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        start_new_session=True,
    )  # fmt: skip


def test_training_killed_at_random_moments_ends_in_the_same_bytes(workspace: Any) -> None:
    workspace.set(LONGER)
    workspace.run("python", "-m", "pipeline.train")
    expected = digest(workspace)
    assert len(expected) == 3 + 5  # weights, model.json, the log; run.json and four snapshots
    chance = Random(0)
    kills = 0
    for _ in range(12):
        for name in OUTPUTS:  # as DVC does before a stage starts
            shutil.rmtree(workspace.path(name), ignore_errors=True)
        process = start(workspace, "python", "-m", "pipeline.train")
        scratch = workspace.path(".scratch")
        deadline = time.monotonic() + 60
        while process.poll() is None and not list(scratch.glob("*/*.safetensors")) and time.monotonic() < deadline:
            time.sleep(0.01)
        time.sleep(chance.random() * 0.6)
        process.kill()
        kills += process.wait() == -signal.SIGKILL
    workspace.run("python", "-m", "pipeline.train")
    assert kills >= 2, "every run had ended before it was killed: nothing was tested"
    assert digest(workspace) == expected
    assert not list(workspace.path(".scratch").glob("*"))


def test_training_stops_when_dvc_is_killed_and_goes_on_afterwards(workspace: Any) -> None:
    workspace.set(LONGER | {"train.steps": 5000, "train.validate_every": 0})
    dvc = start(workspace, "dvc", "repro", "train")
    training: list[psutil.Process] = []
    deadline = time.monotonic() + 60
    while not training and time.monotonic() < deadline:
        time.sleep(0.1)
        children = psutil.Process(dvc.pid).children(recursive=True)
        training = [child for child in children if "pipeline.train" in " ".join(child.cmdline())]
    assert training
    while not list(workspace.path(".scratch").glob("*/*.safetensors")) and time.monotonic() < deadline:
        time.sleep(0.1)
    os.kill(dvc.pid, signal.SIGKILL)
    dvc.wait()
    _, alive = psutil.wait_procs(training, timeout=15)
    for process in alive:
        process.kill()
    assert not alive, "training went on without its parent"
    assert "going on from step" in workspace.run("dvc", "repro", "train").stdout
    resumed = digest(workspace)
    workspace.run("python", "-m", "pipeline.train")
    assert digest(workspace) == resumed


def heed_ctrl_c() -> None:
    """As in a terminal: a shell's background jobs, and so what they start, ignore Ctrl-C."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def test_ctrl_c_is_one_line_and_the_run_goes_on(workspace: Any) -> None:
    workspace.set(LONGER | {"train.steps": 100_000})
    process = subprocess.Popen(
        ["python", "-m", "pipeline.train"], cwd=workspace.folder, env=workspace.environment,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, preexec_fn=heed_ctrl_c,
    )  # fmt: skip
    try:
        deadline = time.monotonic() + 60
        while not list(workspace.path(".scratch").glob("*/*.safetensors")) and time.monotonic() < deadline:
            time.sleep(0.05)
        process.send_signal(signal.SIGINT)
        _, said = process.communicate(timeout=30)
    finally:
        process.kill()
    assert process.returncode == 130
    assert said.strip().splitlines() == ["interrupted: nothing is lost, run the same command again to go on"]
    assert list(workspace.path(".scratch").glob("*/*.safetensors"))


def spoil_shard(workspace: Any) -> None:
    path = workspace.path("data/shards/train-00000.parquet")
    path.write_bytes(path.read_bytes()[:-100])


def edit_shard(workspace: Any) -> None:
    path = workspace.path("data/shards/train-00000.parquet")
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(bytes(content))


def edit_tokenizer(workspace: Any) -> None:
    path = workspace.path("data/tokenizer/tokenizer.json")
    path.write_text(path.read_text().replace("{", "{ ", 1))


def other_model(workspace: Any) -> None:
    path = workspace.path("data/model/model.json")
    path.write_text(path.read_text().replace('"tokenizer_sha256": "', '"tokenizer_sha256": "0'))


def cut_weights(workspace: Any) -> None:
    path = workspace.path("data/model/weights.safetensors")
    path.write_bytes(path.read_bytes()[:-100])


def cut_snapshot(workspace: Any) -> None:
    path = workspace.path("data/snapshots/step-00000000.safetensors")
    path.write_bytes(path.read_bytes()[:-100])


def remove(name: str) -> Any:
    return lambda workspace: workspace.path(name).unlink()


def local(text: bytes, **values: Any) -> Any:
    def write(workspace: Any) -> None:
        workspace.path("texts/mine.txt").write_bytes(text)
        workspace.set({"download.corpus": "local"} | values)

    return write


BAD: list[tuple[str, str, Any, str]] = [
    ("shard cut short", "train", spoil_shard, "was changed or cut short"),
    ("shard edited", "train", edit_shard, "was changed or cut short"),
    ("shard missing", "train", remove("data/shards/train-00000.parquet"), "train-00000.parquet is missing"),
    ("manifest missing", "train", remove("data/shards/manifest.json"), "dvc repro shard"),
    ("tokenizer missing", "shard", remove("data/tokenizer/tokenizer.json"), "dvc repro tokenizer"),
    ("tokenizer of other shards", "train", edit_tokenizer, "made with another tokenizer"),
    ("model of another tokenizer", "evaluate", other_model, "trained with another tokenizer"),
    ("weights cut short", "evaluate", cut_weights, "is damaged"),
    ("weights missing", "evaluate", remove("data/model/weights.safetensors"), "dvc repro train"),
    ("corpus missing", "tokenizer", remove("data/corpus/train.parquet"), "dvc repro download"),
    ("log missing", "evaluate", remove("data/training/log.jsonl"), "dvc repro train"),
    ("snapshot cut short", "probe", cut_snapshot, "step-00000000.safetensors is missing or damaged; run `dvc repro --force"),
    ("snapshots' record missing", "probe", remove("data/snapshots/run.json"), "dvc repro train"),
    ("unknown probe", "train", lambda w: w.set({"probe.probes": ["spectar"]}), "'spectar' in probes; did you mean spectra?"),
    ("empty corpus", "download", local(b""), "is empty"),
    ("not UTF-8", "download", local(b"caf\xe9 noir\n" * 50), "is not UTF-8"),
    ("no file", "download", lambda workspace: workspace.set({"download.corpus": "local"}), "no file matches"),
    ("one document split by document", "download", local(b"words\n" * 50, **{"download.split": "document"}), "split: tail"),
    ("typo", "evaluate", lambda workspace: workspace.path("params.yaml").write_text("trian: {}\n"), "did you mean train?"),
    ("heads", "download", lambda w: w.set({"layers.attention.multi_head.heads": 3}), "do not divide the model's width 16"),
]


@pytest.mark.parametrize(("name", "stage", "spoil", "message"), BAD, ids=[name for name, *_ in BAD])
def test_what_a_user_can_get_wrong_is_one_line_and_loses_nothing(
    workspace: Any, name: str, stage: str, spoil: Any, message: str
) -> None:
    spoil(workspace)
    before = {path: path.read_bytes() for path in sorted(workspace.path("data").rglob("*")) if path.is_file()}
    done = workspace.run("python", "-m", f"pipeline.{stage}", check=False)
    assert done.returncode == 2, done.stdout + done.stderr
    assert message in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
    after = {path: path.read_bytes() for path in sorted(workspace.path("data").rglob("*")) if path.is_file()}
    assert after == before


def test_a_python_without_the_packages_is_told_to_activate_the_environment(workspace: Any) -> None:
    done = workspace.run("python", "-S", "-m", "pipeline.train", check=False)
    assert done.returncode == 2
    assert "source .venv/bin/activate" in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1


def test_a_text_shorter_than_a_context_is_refused(workspace: Any) -> None:
    local(b"Too short to learn from, alas.", **{"download.test": 0.0, "train.context": 64})(workspace)
    done = workspace.run("dvc", "repro", check=False)
    assert done.returncode != 0
    assert "fewer than one context of 64" in done.stderr


def test_a_full_disk_is_one_line_and_the_old_outputs_stay(workspace: Any) -> None:
    """The weights' writer is replaced by one that writes a little and then finds the disk full."""
    program = Path(workspace.home) / "full.py"
    program.write_text(
        "import builtins, errno, sys\n"
        "sys.argv = ['train']\n"
        "import pipeline\n"
        "from lmlab.models import base\n"
        "def full(*args, **kwargs):\n"
        "    open(args[1], 'wb').write(b'half')\n"
        "    raise OSError(errno.ENOSPC, 'No space left on device')\n"
        "base.save_file = full\n"
        "from pipeline import train\n"
        "pipeline.run_stage(train.train)\n"
    )
    before = digest(workspace)
    done = subprocess.run(
        ["python", str(program)], cwd=workspace.folder, capture_output=True, text=True, check=False,
        env=workspace.environment | {"PYTHONPATH": str(workspace.folder)},
    )  # fmt: skip
    assert done.returncode == 2, done.stderr
    assert done.stderr.strip().splitlines()[-1].startswith("error: the disk is full")
    assert digest(workspace) == before
    assert not list(workspace.path("data").glob(".*.partial"))
