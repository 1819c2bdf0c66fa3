"""A search's trials as DVC experiments, made here or by the workers of a cluster."""

import hashlib
import json
import math
import platform
import subprocess
import tempfile
import threading
import time
from collections.abc import Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import psutil

from lmlab.core import params
from lmlab.core.errors import UserError
from lmlab.core.params import Tree, Values, changed
from lmlab.experiments import cluster, commands, git, preflight
from lmlab.experiments.compare import experiments, lock
from lmlab.experiments.compare.run import MEASURES
from lmlab.training.status import how_it_diverged

CODE = ("src", "pipeline", "dvc.yaml")
"""What the results of an experiment depend on beside params.yaml."""


@dataclass(frozen=True)
class Outcome:
    """What a trial came to: its measure, or why it has none."""

    value: float | None
    reason: str = ""


def refused(tree: Tree, values: Values) -> str:
    """Why params.yaml with these values cannot work; empty if it can."""
    try:
        preflight.check(changed(tree, values))
    except UserError as error:
        return str(error)
    return ""


class Experiments:
    """Trials as DVC experiments of the project in this folder."""

    def __init__(self, measure: str, tree: Tree, logs: Path) -> None:
        self.measure, self.tree, self.logs = measure, tree, logs

    def run(self, name: str, values: Values) -> Outcome:
        """The trial's outcome: of the experiment if there is one, else by running it."""
        if (outcome := self.known(name, values)) is not None:
            return outcome
        words = ("exp", "run", "--temp", "-n", name, *self._overrides(values), "evaluate")
        if _wait_for(words) and (outcome := self.known(name, values)) is not None:
            return outcome
        self.logs.mkdir(parents=True, exist_ok=True)
        log = self.logs / f"{name}.log"
        code = _dvc(log, words)
        if (outcome := self.known(name, values)) is not None:
            return outcome
        raise UserError(
            f"{name} did not finish (dvc gave {code}): {_reason(log)} (its whole output is in"
            f" {log})"
        )

    def stop(self) -> str:
        """No more trials are asked for: what becomes of those at work."""
        return "those at work end first"

    def _overrides(self, values: Values) -> Iterator[str]:
        """What makes params.yaml, as it is in this folder, the params of a trial."""
        here = commands.leaves(params.read())
        for key, value in commands.leaves(changed(self.tree, values)).items():
            if key in values or here.get(key) != value:
                yield from ("-S", f"{key}={commands.literal(value)}")

    def known(self, name: str, values: Values) -> Outcome | None:
        """The outcome where it is known without a run: of values that cannot be, or of an
        experiment in Git.
        """
        if why := refused(self.tree, values):
            return Outcome(None, why)
        commit = experiments.find(name)
        if commit is None:
            return None
        if lock.params_at(commit) != changed(self.tree, values):
            raise UserError(f"there is an experiment {name} with other params; give another --name")
        return measured(json.loads(git.output("show", f"{commit}:{MEASURES}")), self.measure)


@contextmanager
def made_here_or_at(address: str, here: Experiments) -> Iterator["Experiments | ByWorkers"]:
    """What makes a trial: this machine, or where an address is given, the workers there."""
    if not address:
        yield here
        return
    with cluster.reached(address) as client:
        yield ByWorkers(here, client, address)


class ByWorkers:
    """Trials by the workers of a cluster, each in a clone of its own; they become experiments here.

    What DVC keeps of them stays in the cache of the worker's clone.
    """

    def __init__(self, here: Experiments, client: Any, address: str) -> None:
        self.here = here
        self._workers = cluster.Workers(client, address, facts)
        self._lock = threading.Lock()
        self._asked: list[Future[Any]] = []

    def run(self, name: str, values: Values) -> Outcome:
        """The trial's outcome: of the experiment if there is one, else by a worker's run.

        Raises UserError where the worker is not like this project, and as `cluster.awaited` does.
        """
        here = self.here
        if (outcome := here.known(name, values)) is not None:
            return outcome
        asked = (here.measure, here.tree, here.logs, name, values)
        future = self._workers.submit(run_and_bundle, *asked)
        self._asked.append(future)
        bundle = future.result()
        with self._lock, tempfile.NamedTemporaryFile(suffix=".bundle") as file:
            file.write(bundle)
            file.flush()
            # what is in it is one experiment
            git.output(
                "fetch", "--quiet", "--no-write-fetch-head", file.name, "refs/exps/*:refs/exps/*"
            )
        outcome = here.known(name, values)
        assert outcome is not None
        return outcome

    def stop(self) -> str:
        """No more trials are asked for, and none is waited for: what becomes of those at work."""
        for future in self._asked:
            future.cancel()
        return "workers that have begun one go on to its end"


def facts() -> dict[str, str]:
    """What decides the results of an experiment beside its params and the processor."""
    here = Path().resolve()
    if not Path("dvc.yaml").is_file():
        raise UserError(
            f"a worker runs in {here}, which is no clone of the project; start it there"
        )
    uncommitted = git.output("diff", "HEAD", "--", *CODE)
    return {
        "its commit": git.output("rev-parse", "HEAD").strip(),
        "uncommitted code": hashlib.sha256(uncommitted.encode()).hexdigest(),
        "Python": platform.python_version(),
        **{name: version(name) for name in ("torch", "numpy", "dvc")},
    }


def run_and_bundle(measure: str, tree: Tree, logs: Path, name: str, values: Values) -> bytes:
    """On a worker: make the experiment in this folder, and return it as a Git bundle."""
    Experiments(measure, tree, logs.resolve()).run(name, values)
    head = git.output("rev-parse", "HEAD").strip()
    ref = f"refs/exps/{head[:2]}/{head[2:]}/{name}"
    bundle = git.printed("bundle", "create", "--quiet", "-", ref, f"^{head}")
    if bundle is None:
        raise UserError(f"a worker in {Path().resolve()} has made {name} and cannot hand it over")
    return bundle


def _reason(log: Path) -> str:
    """The first error in an experiment's output; without one its last line."""
    output = log.read_text(encoding="utf-8", errors="replace").splitlines()
    lines = [line for line in output if line.strip()]
    errors = [line.removeprefix("error: ") for line in lines if line.startswith("error: ")]
    return next(iter(errors or lines[-1:]), "")


def measured(results: dict[str, Any], measure: str) -> Outcome:
    """A number of results/measures.json by its dotted key; of a run that diverged the reason why it
    has none.

    Raises UserError for a key that is not there.
    """
    if diverged := how_it_diverged(results):
        return Outcome(None, diverged)
    leaves = commands.leaves(results)
    numbers = {key: value for key, value in leaves.items() if type(value) in (int, float)}
    if measure not in numbers:
        raise UserError(
            f"--measure {measure}: no such number in {MEASURES}; {params.nearest(measure, numbers)}"
        )
    value = float(numbers[measure])
    return Outcome(value) if math.isfinite(value) else Outcome(None, f"{measure} is {value}")


def _dvc(log: Path, words: tuple[str, ...]) -> int:
    """Run DVC; its exit code."""
    with open(log, "w", encoding="utf-8") as file:
        started = subprocess.Popen(
            commands.dvc_command(*words),
            stdout=file,
            stderr=subprocess.STDOUT,
            env=commands.dvc_environment(),
        )
        try:
            return started.wait()
        except BaseException:
            started.wait()  # Ctrl-C reached it too: let it stop in order
            raise


def _wait_for(words: tuple[str, ...]) -> bool:
    """A search that was killed leaves DVC behind, which runs its trial to the end: wait for it.

    Whether it was there.
    """
    has_waited = False
    while any(_runs(process, words) for process in psutil.process_iter()):
        has_waited = True
        time.sleep(0.5)
    return has_waited


def _runs(process: psutil.Process, words: tuple[str, ...]) -> bool:
    try:
        return tuple(process.cmdline()[-len(words) :]) == words and process.cwd() == str(Path.cwd())
    except psutil.Error:
        return False
