"""`lmlab search` and `lmlab requeue` with DVC itself: killed, started again, and what is then in
the history.

What a search asks for is a stage `evaluate`. One that takes no time stands in for it here, so that
all the time is DVC's.
"""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from ports import free_port

pytestmark = pytest.mark.pipeline
LMLAB = (sys.executable, "-c", "import pipeline; from lmlab.cli import main; main()")
RATE = "optimizers.adamw.learning_rate"
SEARCH = (*LMLAB, "search", "--key", f"{RATE}=log:0.0001..0.1", "--name", "rate", "--trials")


def until(true: Callable[[], Any], seconds: float = 180) -> Any:
    """Wait for something to come true."""
    end = time.monotonic() + seconds
    while not (found := true()):
        assert time.monotonic() < end, "waited too long"
        time.sleep(0.2)
    return found


def at_work_in(workspace: Any, *words: str) -> list[psutil.Process]:
    """Processes whose command line has these words, in the workspace or a copy that DVC made below
    it.
    """
    return at_work_in_folder(workspace.folder, *words)


def at_work_in_folder(folder: Path, *words: str) -> list[psutil.Process]:
    found = []
    for process in psutil.process_iter():
        try:
            inside = process.cwd().startswith(str(folder))
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
            metrics = data["metrics"].get("results/metrics.json", {}).get("data", {})
            bits = metrics.get("validation", {}).get("bits_per_byte")
            rate = data["params"]["params.yaml"]["data"]["optimizers"]["adamw"]["learning_rate"]
            found[experiment["name"]] = ((experiment["executor"] or {}).get("state"), bits, rate)
    return found


STUB = """
import json, math, time
from pathlib import Path
from ruamel.yaml import YAML

rate = YAML(typ="safe").load(Path("params.yaml"))["optimizers"]["adamw"]["learning_rate"]
time.sleep(1)
Path("results").mkdir(exist_ok=True)
bits = 2 + (math.log10(rate) + 2.5) ** 2
measured = {"status": "finished", "validation": {"bits_per_byte": bits}}
for name in ("metrics", "measures"):
    Path(f"results/{name}.json").write_text(json.dumps(measured))
"""
STAGES = """
stages:
  evaluate:
    cmd: python stub.py
    deps:
    - stub.py
    params:
    - optimizers.adamw.learning_rate
    metrics:
    - results/metrics.json:
        cache: false
    - results/measures.json:
        cache: false
"""


@pytest.fixture
def quick(workspace: Any) -> Any:
    """The workspace with a pipeline of one stage, which takes a second."""
    workspace.path("stub.py").write_text(STUB)
    listed = workspace.path(
        "dvc.yaml"
    ).read_text()  # of which the check of params.yaml asks for lines
    workspace.path("dvc.yaml").write_text(
        STAGES + "".join(f"# {line}\n" for line in listed.splitlines())
    )
    workspace.path("dvc.lock").unlink()
    workspace.run("dvc", "repro")
    workspace.run("git", "add", "-A")
    workspace.run("git", "commit", "-qm", "a pipeline that takes no time")
    return workspace


def test_a_search_is_killed_and_goes_on_and_its_trials_are_experiments(quick: Any) -> None:
    started = subprocess.Popen(
        [*SEARCH, "1"], cwd=quick.folder, env=quick.environment, stdout=subprocess.PIPE
    )
    until(lambda: at_work_in(quick, "stub.py") or started.poll() is not None)
    assert started.poll() is None
    os.kill(started.pid, signal.SIGKILL)
    started.communicate()
    said = quick.run(*SEARCH, "2").stdout
    shown = experiments(quick)
    assert set(shown) == {"rate-0000", "rate-0001"}
    assert shown["rate-0000"][2] != shown["rate-0001"][2]
    best = min(shown, key=lambda name: shown[name][1])
    assert f"dvc exp apply {best}" in said
    assert f"{shown['rate-0001'][1]:.4f}" in said

    quick.path(".scratch/search/rate.db").unlink()  # Git knows as much
    again = quick.run(*SEARCH, "2").stdout
    assert again.splitlines()[-8:] == said.splitlines()[-8:]
    assert experiments(quick) == shown

    quick.set({"train.steps": 7})
    refused = quick.run(*SEARCH, "3", check=False)
    assert refused.returncode == 2
    assert "the rest of params.yaml is no longer what this search began with" in refused.stderr


def test_lost_and_failed_tasks_are_queued_again_with_their_params(workspace: Any) -> None:
    workspace.run(
        "dvc",
        "exp",
        "run",
        "--queue",
        "-n",
        "broken",
        "-S",
        "train.clip=-1.0",
        "-S",
        f"{RATE}=0.5",
        "train",
    )
    long = ("train.steps=2500", "train.validate_every=0", "train.checkpoint_seconds=0.2")
    workspace.run(
        "dvc",
        "exp",
        "run",
        "--queue",
        "-n",
        "lost",
        *(word for key in long for word in ("-S", key)),
        "train",
    )
    start_queue(workspace)
    until(lambda: list(workspace.path(".scratch").glob("train-*/checkpoint.safetensors")))
    trains = at_work_in(workspace, "pipeline.train")
    for process in [*at_work_in(workspace, "queue-worker"), *at_work_in(workspace, "exec-run")]:
        process.kill()
    assert not psutil.wait_procs(trains, timeout=60)[1]
    assert "Running" in workspace.run("dvc", "queue", "status").stdout, (
        "DVC mends this itself now: is `requeue` needed?"
    )

    said = workspace.run(*LMLAB, "requeue").stdout
    assert said.splitlines()[0].startswith("2 tasks have failed or run")
    assert "lost: queued again (was lost)" in said
    assert "broken: queued again (had failed)" in said
    assert {name: (state, rate) for name, (state, _, rate) in experiments(workspace).items()} == {
        "lost": ("queued", 0.004),
        "broken": ("queued", 0.5),
    }
    assert workspace.run(*LMLAB, "requeue").stdout == "nothing has failed or was lost\n"

    workspace.run("dvc", "queue", "remove", "broken")
    start_queue(workspace)
    until(lambda: at_work_in(workspace, "pipeline.train"))
    assert "lost: running, left alone" in workspace.run(*LMLAB, "requeue", "lost").stdout
    until(
        lambda: "train: resuming from step" in workspace.run("dvc", "queue", "logs", "lost").stdout
    )
    workspace.run("dvc", "queue", "kill", "lost")


def start_queue(workspace: Any) -> None:
    """Without a pipe, which the worker would keep open."""
    nowhere = subprocess.DEVNULL
    subprocess.run(
        ["dvc", "queue", "start"],
        cwd=workspace.folder,
        env=workspace.environment,
        stdout=nowhere,
        check=True,
    )


def rates(said: str) -> list[str]:
    """The points of a search, as it tells them when they end."""
    return [line for line in said.splitlines() if "bits_per_byte" in line]


def test_two_trials_at_a_time_are_two_experiments(quick: Any) -> None:
    said = quick.run(*SEARCH, "4", "--at-a-time", "2").stdout
    shown = experiments(quick)
    assert set(shown) == {f"rate-{number:04d}" for number in range(4)}
    assert len({rate for _, _, rate in shown.values()}) == 4
    quick.path(".scratch/search/rate.db").unlink()
    assert rates(quick.run(*SEARCH, "4", "--at-a-time", "2").stdout) == rates(said)


@pytest.fixture
def dask(quick: Any) -> Iterator[Callable[..., Any]]:
    """A factory: `dask("worker", folder)` starts that command there; all end with the test."""
    started: list[subprocess.Popen[bytes]] = []

    def start(command: str, folder: Path, *words: str) -> subprocess.Popen[bytes]:
        made = subprocess.Popen(
            [sys.executable, "-m", "distributed.cli.dask_" + command, *words],
            cwd=folder,
            env=quick.environment | {"PYTHONPATH": str(folder)},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        started.append(made)
        return made

    yield start
    for process in started:
        process.kill()
        process.wait()


def test_workers_in_clones_of_their_own_make_the_trials(
    quick: Any, dask: Callable[..., Any], tmp_path: Path
) -> None:
    """The same points and measures as here, also where a worker is killed in the middle; another
    commit is refused.
    """
    here = rates(quick.run(*SEARCH, "4", "--at-a-time", "2").stdout)
    expected = experiments(quick)
    quick.run("dvc", "exp", "remove", "--all-commits")
    shutil.rmtree(quick.path(".scratch/search"))
    clones = [tmp_path / f"clone-{number}" for number in range(2)]
    for clone in clones:
        quick.run("git", "clone", "-q", str(quick.folder), str(clone))
    address = f"tcp://127.0.0.1:{free_port()}"
    here_alone = ("--host", "127.0.0.1", "--dashboard-address", "127.0.0.1:0")
    dask("scheduler", tmp_path, "--port", address.rpartition(":")[2], *here_alone)
    workers = [
        dask("worker", clone, address, "--nthreads", "1", "--no-nanny", *here_alone)
        for clone in clones
    ]
    by_workers = ("--at-a-time", "2", "--cluster", address)
    searching = subprocess.Popen(
        [*SEARCH, "4", *by_workers],
        cwd=quick.folder,
        env=quick.environment,
        stdout=subprocess.PIPE,
        text=True,
    )
    until(lambda: at_work_in_folder(clones[0], "stub.py") or searching.poll() is not None)
    workers[0].kill()
    said, _ = searching.communicate(timeout=300)
    assert searching.returncode == 0
    assert rates(said) == here
    assert experiments(quick) == expected

    quick.run("git", "commit", "-q", "--allow-empty", "-m", "another")
    refused = quick.run(*SEARCH[:-2], "later", "--trials", "1", *by_workers, check=False)
    assert refused.returncode == 2
    assert "is not like this project: its commit; check out this commit there" in refused.stderr
