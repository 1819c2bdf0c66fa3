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
import re
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import optuna
import psutil
from optuna.distributions import BaseDistribution
from optuna.trial import FrozenTrial, TrialState
from sqlalchemy.exc import SQLAlchemyError

from lmlab.core import params
from lmlab.core.errors import UserError
from lmlab.core.params import Tree, Values, changed
from lmlab.experiments import commands, git
from lmlab.experiments.search import ranges
from lmlab.experiments.search.trials import CODE, Outcome, refused

optuna.logging.set_verbosity(optuna.logging.WARNING)


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
    at_a_time: int = 1
    """Trials that run at once."""

    def record(self) -> dict[str, Any]:
        """As plain values for JSON."""
        ranges = {
            key: optuna.distributions.distribution_to_json(range_)
            for key, range_ in self.keys.items()
        }
        return asdict(self) | {"keys": ranges}

    @property
    def direction(self) -> Literal["minimize", "maximize"]:
        """As Optuna calls it."""
        return "maximize" if self.maximise else "minimize"

    def title(self, number: int) -> str:
        """The experiment of a trial."""
        return f"{self.name}-{number:04d}"


def read(
    name: str,
    typed_keys: list[str],
    measure: str,
    maximise: bool,
    seed: int,
    tree: Tree,
    at_a_time: int = 1,
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
    return Search(name, keys, measure, maximise, seed, _base(tree, list(keys)), at_a_time)


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
    refusal = refused(tree, {key: value}).removeprefix("params.yaml: ")
    # where a value has to go with another key's, it stands in brackets behind its key
    if re.match(rf"{re.escape(key)}(:| (?!\())", refusal):
        raise UserError(f"--key {refusal}")


def run(
    search: Search,
    trials: int,
    storage: Path,
    run_trial: Callable[[str, Values], Outcome],
    show: Callable[[str], None],
    stop: Callable[[], str] = lambda: "those at work end first",
) -> list[Trial]:
    """Run trials until there are as many as wished, those of earlier calls included; all of them in
    order.

    `run_trial` is given an experiment's name and the values to try, in up to `search.at_a_time`
    threads. It may raise UserError for what says nothing about the values, such as a full disk:
    then the search ends, and goes on with the same trial when it is called again. Where it ends
    early, `stop` is called and says what becomes of the other trials that have begun.
    """
    study = _opened(search, storage)
    done = _finished(search, study)
    running: deque[tuple[Values, Future[Outcome]]] = deque()
    with ThreadPoolExecutor(search.at_a_time) as threads:
        while len(done) < trials:
            while len(running) < min(search.at_a_time, trials - len(done)):
                name = search.title(len(done) + len(running))
                values = _point(search, done, [values for values, _ in running])
                show(f"{name} of {trials}: {_listed(values)}: begins")
                running.append((values, threads.submit(run_trial, name, values)))
            values, future = running.popleft()
            try:
                trial = Trial(search.title(len(done)), values, future.result())
            except BaseException:
                threads.shutdown(wait=False, cancel_futures=True)
                show(f"no more trials begin; {stop()}")
                raise
            study.add_trial(_for_optuna(search, trial))
            done.append(trial)
            show(f"{trial.name}: {_listed(values)}: {_found(search, trial.outcome)}")
    return done


def _found(search: Search, outcome: Outcome) -> str:
    if outcome.value is None:
        return outcome.reason
    return f"{search.measure} {outcome.value:.4f}"


def _opened(search: Search, storage: Path) -> optuna.Study:
    """What is remembered of the search. Raises UserError where that is damaged, of another search,
    or in use.
    """
    storage.parent.mkdir(parents=True, exist_ok=True)
    try:
        study = optuna.create_study(
            study_name=search.name,
            storage=f"sqlite:///{storage}",
            direction=search.direction,
            load_if_exists=True,
        )
    except (SQLAlchemyError, optuna.exceptions.StorageInternalError):
        raise UserError(
            f"{storage} is damaged; delete it and search again: what is in Git is not run twice"
        ) from None
    _check_same(search, study)
    _check_alone_at_work(search, study)
    return study


def _point(search: Search, done: list[Trial], running: list[Values]) -> Values:
    """The next point: drawn from what all trials gave but the last ones, `at_a_time` less one.

    Those may still run when it is drawn, so that they never count, whoever ends first: a search
    tries the same points wherever it is stopped. That their places are taken is known.
    """
    number = len(done) + len(running)
    count = max(0, number - search.at_a_time + 1)
    sampler = optuna.samplers.TPESampler(
        seed=_seed(search.seed, number), constant_liar=search.at_a_time > 1
    )
    study = optuna.create_study(direction=search.direction, sampler=sampler)
    study.add_trials([_for_optuna(search, trial) for trial in done[:count]])
    for values in [*(trial.values for trial in done[count:]), *running]:
        study.add_trial(_made(search, values, TrialState.RUNNING))
    return dict(study.ask(search.keys).params)


def _for_optuna(search: Search, trial: Trial) -> FrozenTrial:
    if trial.outcome.value is not None:
        return _made(search, trial.values, TrialState.COMPLETE, value=trial.outcome.value)
    # without a measure it counts as worse than any, so that its neighbours are avoided
    why = {"reason": trial.outcome.reason}
    return _made(search, trial.values, TrialState.PRUNED, user_attrs=why)


def _made(search: Search, values: Values, state: TrialState, **more: Any) -> FrozenTrial:
    return optuna.trial.create_trial(params=values, distributions=search.keys, state=state, **more)


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
    before = {"at_a_time": 1, **before}  # which older searches do not say
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
                f"--name {search.name} is a search with other {part.replace('_', '-')}; give"
                " another --name"
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


def _base(tree: Tree, keys: list[str]) -> dict[str, str]:
    """What decides the results besides the searched keys, as hashes: the other params, and code
    that may be uncommitted.
    """
    try:
        code = [git.output("rev-parse", f"HEAD:{path}") for path in CODE]
        code.append(git.output("diff", "HEAD", "--", *CODE))
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
