"""Searches: Optuna chooses the next point of a sweep from what the earlier ones gave, and each
point is a DVC experiment.

A trial is `dvc exp run --temp` under the search's name and a number, so it is in the history like
any other run. Points come from the tree-structured Parzen estimator (Bergstra et al. 2011,
Algorithms for Hyper-Parameter Optimization), seeded anew for every trial from the search's seed and
the trial's number. So where a search was interrupted does not matter: what Optuna's own storage
(SQLite in .scratch/search) remembers of finished trials decides the next point, and if the storage
is lost, the experiments in Git tell the same once more.
"""

import difflib
import hashlib
import json
import math
import re
import subprocess
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import psutil
from optuna.distributions import BaseDistribution
from optuna.trial import TrialState
from sqlalchemy.exc import SQLAlchemyError

from lmlab.core import params
from lmlab.core.errors import UserError
from lmlab.core.params import Tree, changed
from lmlab.experiments import commands, git, preflight
from lmlab.experiments.compare import experiments, lock
from lmlab.experiments.compare.run import MEASURES
from lmlab.experiments.search import ranges
from lmlab.training.status import how_it_diverged

optuna.logging.set_verbosity(optuna.logging.WARNING)

Values = dict[str, Any]
"""Values by dotted key."""


@dataclass(frozen=True)
class Outcome:
    """What a trial came to: its measure, or why it has none."""

    value: float | None
    reason: str = ""


@dataclass(frozen=True)
class Trial:
    """One finished trial."""

    name: str
    values: Values
    outcome: Outcome


@dataclass(frozen=True)
class Search:
    """What is searched. All of it is fixed once the search has begun; only the number of trials may
    change.
    """

    name: str
    keys: dict[str, BaseDistribution]
    """Dotted keys of params.yaml, and what each may be."""
    measure: str
    """A dotted key of results/measures.json."""
    maximise: bool
    seed: int
    base: dict[str, str]
    """What the trials share, as hashes by what they are of; a search goes on only where these are
    the same.
    """

    def record(self) -> dict[str, Any]:
        """As plain values for JSON."""
        ranges = {
            key: optuna.distributions.distribution_to_json(range_)
            for key, range_ in self.keys.items()
        }
        return asdict(self) | {"keys": ranges}

    def title(self, number: int) -> str:
        """The experiment of a trial."""
        return f"{self.name}-{number:04d}"


def read(
    name: str, typed_keys: list[str], measure: str, maximise: bool, seed: int, tree: Tree
) -> Search:
    """A search from what was typed. Raises UserError for keys that params.yaml lacks and ranges
    that cannot be.
    """
    if not re.fullmatch(r"[A-Za-z][A-Za-z0-9_-]*", name):
        raise UserError(
            f"--name {name}: a name begins with a letter and has only letters, digits, - and _"
        )
    keys: dict[str, BaseDistribution] = {}
    for typed in typed_keys:
        key, equals, text = typed.partition("=")
        if not equals:
            raise UserError(
                f"--key {typed}: write KEY=RANGE, such as"
                " optimizers.adamw.learning_rate=log:0.0003..0.03"
            )
        if key in keys:
            raise UserError(f"--key {key} is given twice")
        keys[key] = ranges.parse(key, text, _present(tree, key))
        for value in ranges.ends(keys[key]):
            _check_alone(tree, key, value)
    if not keys:
        raise UserError("nothing to search; name at least one --key KEY=RANGE")
    return Search(name, keys, measure, maximise, seed, _base(tree, list(keys)))


def _present(tree: Tree, dotted: str) -> Any:
    """The value that params.yaml has at a key. Raises UserError for a key it lacks, with the
    nearest it has.
    """
    values = commands.leaves(tree)
    if dotted not in values:
        close = difflib.get_close_matches(dotted, values, n=1, cutoff=0.3)
        nearest = close[0] if close else "train.steps"
        raise UserError(f"--key {dotted}: params.yaml has no such key; did you mean {nearest}?")
    if isinstance(values[dotted], list):
        raise UserError(f"--key {dotted} is a list in params.yaml; name a key with a single value")
    return values[dotted]


def _check_alone(tree: Tree, key: str, value: Any) -> None:
    """Refuse a value that its key can never have. One that does not go with other keys' values may
    go with others.
    """
    refusal = _refused(tree, {key: value}).removeprefix("params.yaml: ")
    # where a value has to go with another key's, it stands in brackets behind its key
    if re.match(rf"{re.escape(key)}(:| (?!\())", refusal):
        raise UserError(f"--key {refusal}")


def _refused(tree: Tree, values: Values) -> str:
    """Why params.yaml with these values cannot work; empty if it can."""
    try:
        preflight.check(changed(tree, values))
    except UserError as error:
        return str(error)
    return ""


def run(
    search: Search,
    trials: int,
    storage: Path,
    run_trial: Callable[[str, Values], Outcome],
    show: Callable[[str], None],
) -> list[Trial]:
    """Run trials until there are as many as wished, those of earlier calls included; all of them in
    order.

    `run_trial` is given an experiment's name and the values to try. It may raise UserError for what
    says nothing about the values, such as a full disk: then the search ends, and goes on with the
    same trial when it is called again.
    """
    storage.parent.mkdir(parents=True, exist_ok=True)
    try:
        study = optuna.create_study(
            study_name=search.name,
            storage=f"sqlite:///{storage}",
            direction="maximize" if search.maximise else "minimize",
            load_if_exists=True,
        )
    except (SQLAlchemyError, optuna.exceptions.StorageInternalError):
        raise UserError(
            f"{storage} is damaged; delete it and search again: what is in Git is not run twice"
        ) from None
    _check_same(search, study)
    _check_alone_at_work(search, study)
    for abandoned in study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
        # its process is gone; the same point is drawn once more
        study.tell(abandoned.number, state=TrialState.FAIL)
    while len(done := _finished(search, study)) < trials:
        study.sampler = optuna.samplers.TPESampler(seed=_seed(search.seed, len(done)))
        trial = study.ask(search.keys)
        name = search.title(len(done))
        show(f"{name} of {trials}: {_listed(trial.params)}: begins")
        try:
            outcome = run_trial(name, trial.params)
        except BaseException:
            study.tell(trial, state=TrialState.FAIL)
            raise
        if outcome.value is None:
            trial.set_user_attr("reason", outcome.reason)
            # without a measure it counts as worse than any, so that its neighbours are avoided
            study.tell(trial, state=TrialState.PRUNED)
            result = outcome.reason
        else:
            study.tell(trial, outcome.value)
            result = f"{search.measure} {outcome.value:.4f}"
        show(f"{name}: {_listed(trial.params)}: {result}")
    return done


def _seed(seed: int, number: int) -> int:
    return int(np.random.SeedSequence([seed, number]).generate_state(1)[0])


def _finished(search: Search, study: optuna.Study) -> list[Trial]:
    done = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE, TrialState.PRUNED))
    outcomes = [
        Outcome(trial.value)
        if trial.state == TrialState.COMPLETE
        else Outcome(None, trial.user_attrs["reason"])
        for trial in done
    ]
    return [
        Trial(search.title(number), dict(trial.params), outcome)
        for number, (trial, outcome) in enumerate(zip(done, outcomes, strict=True))
    ]


def _check_same(search: Search, study: optuna.Study) -> None:
    """Refuse to go on with a search that was another one."""
    before, now = study.user_attrs.get("search"), search.record()
    if before is None:
        study.set_user_attr("search", now)
        return
    for part, value in now.items():
        if part == "base":
            unlike = [what for what, hash_ in value.items() if before["base"].get(what) != hash_]
            if unlike:
                raise UserError(
                    f"--name {search.name}: {unlike[0]} is no longer what this search began with,"
                    " so its trials would not"
                    " compare; put it back or give another --name"
                )
        elif before[part] != value:
            raise UserError(
                f"--name {search.name} is a search with other {part}; give another --name"
            )


def _check_alone_at_work(search: Search, study: optuna.Study) -> None:
    """Refuse to run beside another process that is at the same search."""
    number, started = study.user_attrs.get("process", [0, 0.0])
    me = psutil.Process()
    with suppress(psutil.Error):
        if number != me.pid and abs(psutil.Process(number).create_time() - started) < 1:
            raise UserError(
                f"--name {search.name}: process {number} is at this search; wait for it or stop it"
            )
    study.set_user_attr("process", [me.pid, me.create_time()])


def ranked(search: Search, trials: list[Trial]) -> list[Trial]:
    """Those that have a measure, the best first."""
    measured = [trial for trial in trials if trial.outcome.value is not None]
    sign = -1 if search.maximise else 1
    return sorted(measured, key=lambda trial: (sign * (trial.outcome.value or 0), trial.name))


def lines(search: Search, trials: list[Trial], tree: Tree, shown: int = 10) -> list[str]:
    """What to tell at the end: the best trials, how to take the best over, and that it has to be
    confirmed.
    """
    best = ranked(search, trials)
    count = f"trials: {len(trials)}, without a measure: {len(trials) - len(best)}"
    if not best:
        return [count, *(f"first: {trial.outcome.reason}" for trial in trials[:1])]
    width = max(len(trial.name) for trial in best)
    table = [
        f"  {trial.name:<{width}}  {trial.outcome.value:.4f}  {_listed(trial.values)}"
        for trial in best[:shown]
    ]
    seed = params.block(tree, "train")["seed"]
    also = "" if params.block(tree, "train")["data_seed"] == -1 else " -S train.data_seed=-1"
    overrides = " ".join(f"-S {key}={_written(value)}" for key, value in best[0].values.items())
    return [
        count,
        "",
        *table,
        "",
        f"take it over:  dvc exp apply {best[0].name}",
        f"The best of {len(best)} was chosen for its luck too, so it looks better than it is."
        " Before you believe it,",
        "run it with fresh seeds, and what it should beat with the same seeds:",
        f"  dvc exp run --queue {overrides} -S 'train.seed=range({seed + 1},{seed + 6})'{also}",
        f"  dvc exp run --queue -S 'train.seed=range({seed + 1},{seed + 6})'{also}",
    ]


def _listed(values: Values) -> str:
    """For reading: four digits."""
    return ", ".join(
        f"{key} {value:.4g}" if isinstance(value, float) else f"{key} {value}"
        for key, value in values.items()
    )


def _written(value: Any) -> str:
    """As it stands in a command line: exactly, and plain words without quotes."""
    return (
        json.dumps(value) if isinstance(value, bool | int | float) or value is None else str(value)
    )


class Experiments:
    """Trials as DVC experiments of the project in this folder."""

    def __init__(self, search: Search, tree: Tree, logs: Path) -> None:
        self.search, self.tree, self.logs = search, tree, logs

    def run(self, name: str, values: Values) -> Outcome:
        """The trial's outcome: of the experiment if there is one, else by running it."""
        if refused := _refused(self.tree, values):
            return Outcome(None, refused)
        overrides: list[str] = []
        for key, value in values.items():
            overrides += ["-S", f"{key}={commands.literal(value)}"]
        words = ("exp", "run", "--temp", "-n", name, *overrides, "evaluate")
        _wait_for(words)
        if (outcome := self._kept(name, values)) is not None:
            return outcome
        self.logs.mkdir(parents=True, exist_ok=True)
        log = self.logs / f"{name}.log"
        code = _dvc(log, words)
        if (outcome := self._kept(name, values)) is not None:
            return outcome
        raise UserError(
            f"{name} did not finish (dvc gave {code}): {_reason(log)} (its whole output is in"
            f" {log})"
        )

    def _kept(self, name: str, values: Values) -> Outcome | None:
        """The outcome of an experiment in Git; None if there is none of that name."""
        commit = experiments.find(name)
        if commit is None:
            return None
        if lock.params_at(commit) != changed(self.tree, values):
            raise UserError(f"there is an experiment {name} with other params; give another --name")
        return measured(json.loads(git.output("show", f"{commit}:{MEASURES}")), self.search.measure)


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


def _base(tree: Tree, keys: list[str]) -> dict[str, str]:
    """What decides the results besides the searched keys, as hashes: the other params, and code
    that may be uncommitted.
    """
    try:
        code = [git.output("rev-parse", f"HEAD:{path}") for path in ("src", "pipeline", "dvc.yaml")]
        code.append(git.output("diff", "HEAD", "--", "src", "pipeline", "dvc.yaml"))
    except UserError:
        raise UserError(
            "a search needs the project's Git history with a first commit; run `git status` to see"
        ) from None
    others = changed(tree, dict.fromkeys(keys))
    return {
        "the rest of params.yaml": _hash(json.dumps(others, sort_keys=True)),
        "the code": _hash("\n".join(code)),
    }


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:20]


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


def _wait_for(words: tuple[str, ...]) -> None:
    """A search that was killed leaves DVC behind, which runs its trial to the end: wait for it."""
    while any(_runs(process, words) for process in psutil.process_iter()):
        time.sleep(0.5)


def _runs(process: psutil.Process, words: tuple[str, ...]) -> bool:
    try:
        return tuple(process.cmdline()[-len(words) :]) == words and process.cwd() == str(Path.cwd())
    except psutil.Error:
        return False
