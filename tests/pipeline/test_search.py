"""`lmlab search` and `lmlab requeue` with DVC itself: killed, started again, and what is then in the history."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

import psutil
import pytest

pytestmark = pytest.mark.pipeline
LMLAB = (sys.executable, "-c", "import pipeline; from lmlab.cli import main; main()")
RATE = "optimizers.adamw.learning_rate"
SEARCH = (*LMLAB, "search", "--key", f"{RATE}=log:0.0001..0.1", "--name", "rate", "--trials")


def until(true: Callable[[], Any], seconds: float = 240) -> Any:
    """Wait for something to come true."""
    end = time.monotonic() + seconds
    while not (found := true()):
        assert time.monotonic() < end, "waited too long"
        time.sleep(0.2)
    return found


def at_work_in(workspace: Any, *words: str) -> list[psutil.Process]:
    """Processes whose command line has these words, in the workspace or a copy that DVC made below it."""
    found = []
    for process in psutil.process_iter():
        try:
            inside = process.cwd().startswith(str(workspace.folder))
            if inside and all(any(word in part for part in process.cmdline()) for word in words):
                found.append(process)
        except psutil.Error:
            continue
    return found


def experiments(workspace: Any) -> dict[str, Any]:
    """`dvc exp show`: state, measure and rate by name."""
    found = {}
    for row in json.loads(workspace.run("dvc", "exp", "show", "--json").stdout):
        for experiment in row.get("experiments") or []:
            data = experiment["revs"][0]["data"]
            bits = data["metrics"]["results/metrics.json"]["data"]["validation"]["bits_per_byte"]
            rate = data["params"]["params.yaml"]["data"]["optimizers"]["adamw"]["learning_rate"]
            found[experiment["name"]] = ((experiment["executor"] or {}).get("state"), bits, rate)
    return found


def test_a_search_is_killed_and_goes_on_and_its_trials_are_experiments(workspace: Any) -> None:
    started = subprocess.Popen([*SEARCH, "1"], cwd=workspace.folder, env=workspace.environment, stdout=subprocess.PIPE)
    until(lambda: at_work_in(workspace, "pipeline.train"))
    os.kill(started.pid, signal.SIGKILL)
    started.communicate()
    said = workspace.run(*SEARCH, "2").stdout
    shown = experiments(workspace)
    assert set(shown) == {"rate-0000", "rate-0001"}
    assert shown["rate-0000"][2] != shown["rate-0001"][2]
    best = min(shown, key=lambda name: shown[name][1])
    assert f"dvc exp apply {best}" in said
    assert f"{shown['rate-0001'][1]:.4f}" in said

    workspace.path(".scratch/search/rate.db").unlink()  # Git knows as much
    before = time.monotonic()
    again = workspace.run(*SEARCH, "2").stdout
    assert again.splitlines()[-8:] == said.splitlines()[-8:]
    assert experiments(workspace) == shown
    assert not at_work_in(workspace, "exp", "run", "--temp"), f"{time.monotonic() - before} s"

    workspace.set({"train.steps": 7})
    refused = workspace.run(*SEARCH, "3", check=False)
    assert refused.returncode == 2
    assert "the rest of params.yaml is no longer what this search began with" in refused.stderr


def test_lost_and_failed_tasks_are_queued_again_with_their_params(workspace: Any) -> None:
    workspace.run("dvc", "exp", "run", "--queue", "-n", "broken", "-S", f"{RATE}=1e30", "-S", "train.steps=20")
    workspace.run("dvc", "exp", "run", "--queue", "-n", "lost", "-S", "train.steps=4000", "-S", "train.validate_every=0")
    workspace.run("dvc", "queue", "start")
    (train,) = until(lambda: [p for p in at_work_in(workspace, "pipeline.train") if "steps: 4000" in _params(p)])
    until(lambda: list(workspace.path(".scratch").glob("train-*/checkpoint.safetensors")))
    for process in [*at_work_in(workspace, "exec-run"), *at_work_in(workspace, "queue-worker")]:
        process.kill()
    psutil.wait_procs([train], timeout=30)
    assert "Running" in workspace.run("dvc", "queue", "status").stdout, "DVC mends this itself now: drop `lmlab requeue`"

    said = workspace.run(*LMLAB, "requeue").stdout
    assert "lost: queued again (was lost)" in said
    assert "broken: queued again (had failed)" in said
    status = workspace.run("dvc", "queue", "status").stdout
    assert status.count("Queued") == 2
    assert "Failed" not in status
    assert "Running" not in status
    assert workspace.run(*LMLAB, "requeue").stdout == "nothing has failed or was lost\n"

    workspace.run("dvc", "queue", "start")
    until(lambda: at_work_in(workspace, "pipeline.train"))
    assert "lost: runs, left alone" in workspace.run(*LMLAB, "requeue", "lost").stdout
    workspace.run("dvc", "queue", "logs", "lost", "--follow")
    until(lambda: "Failed" in workspace.run("dvc", "queue", "status").stdout)
    assert "train: going on from step" in workspace.run("dvc", "queue", "logs", "lost").stdout
    shown = experiments(workspace)
    assert shown["lost"][0] == "success"
    assert shown["broken"][0] == "failed"
    assert shown["broken"][2] == 1e30


def _params(process: psutil.Process) -> str:
    with open(f"{process.cwd()}/params.yaml") as file:
        return file.read()
