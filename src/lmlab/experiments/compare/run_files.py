"""A run read from its files: params.yaml, dvc.lock and results/, checked against each other.

What a run was made with stands in its dvc.lock, whatever params.yaml says by now.
"""

import json
from dataclasses import dataclass, field, replace
from io import BytesIO
from pathlib import Path

import pandas as pd
from ruamel.yaml.error import YAMLError

from lmlab.core.errors import UserError
from lmlab.core.params import Values
from lmlab.experiments import timing
from lmlab.experiments.compare.lock import Lock, read_params
from lmlab.experiments.compare.run import (
    BLOCKS,
    CURVES,
    MEASURES,
    METRICS,
    Reader,
    Run,
    numbers,
    with_results,
)
from lmlab.experiments.wording import few

FILES = (
    "params.yaml",
    "dvc.lock",
    MEASURES,
    METRICS,
    *(f"results/{name}.csv" for name in (*CURVES, BLOCKS)),
)
"""What is read of every run."""
DAMAGED = (ValueError, AttributeError, LookupError, OverflowError, YAMLError)
"""What reading a damaged file may raise."""
MOST_EDITED = 3
"""Params edited after a run that a note lists."""


class NoRunError(UserError):
    """These files do not hold a finished run; the message says why and what to do."""


@dataclass(frozen=True)
class RunFromFiles:
    """A run and what there is to say about its files, a line each."""

    run: Run
    notes: list[str] = field(default_factory=list)


def read_run(name: str, tracked: Reader, any_file: Reader) -> RunFromFiles:
    """The run that a set of files holds.

    `tracked` reads the files that Git keeps, `any_file` also those of DVC's cache. Raises
    NoRunError.
    """
    results = METRICS if tracked(MEASURES) is None else MEASURES
    needed = {path: tracked(path) for path in (results, "params.yaml", "dvc.lock")}
    for path, content in needed.items():
        if content is None:
            missing = METRICS if path == results else path
            raise NoRunError(
                f"{name} holds no run: it has no {missing}; run `dvc repro` and commit, or name"
                " another"
            )
    metrics, written, locked = (content or b"" for content in needed.values())
    try:
        lock = Lock(locked.decode(), results)
        run = with_results(Run(name, {}, {}, open=any_file), json.loads(metrics))
        params = read_params(written)
    except DAMAGED:
        raise NoRunError(
            f"{name} is left out: its {results}, params.yaml or dvc.lock is damaged"
        ) from None
    why_stale = lock.why_stale(metrics)
    if why_stale:
        raise NoRunError(f"{name} is left out: {why_stale}; run `dvc repro` there")

    edited = {
        key: value for key, value in lock.params.items() if key in params and params[key] != value
    }
    notes = [_note_on_edits(name, edited, params)] if edited else []
    curves = {}
    for curve in (*CURVES, BLOCKS):
        path = f"results/{curve}.csv"
        content = tracked(path)
        if content is None:
            continue
        if lock.differs(path, content):
            notes.append(f"{name}: {path} is not the one that dvc.lock records, so it is not shown")
            continue
        try:
            if content.strip():
                curves[curve] = pd.read_csv(BytesIO(content))
        except ValueError:
            notes.append(f"{name}: {path} is damaged and was not read")
    whole = replace(run, params=params | edited, curves=curves, made_with=lock.made_with)
    return RunFromFiles(whole, notes)


def _note_on_edits(name: str, edited: Values, now: Values) -> str:
    changes = [f"{key} {value!r} (now {now[key]!r})" for key, value in edited.items()]
    return (
        f"{name}: params.yaml was edited after the run; it counts as what it ran with:"
        f" {few(changes, MOST_EDITED)}"
    )


def with_times(root: Path, read: Reader) -> Reader:
    """A reader of the same files that also has data/timing/<stage>.json, which no commit holds.

    Those are what the stages of that run took on this machine.
    """

    def read_any(path: str) -> bytes | None:
        if not path.startswith(f"{timing.FOLDER}/"):
            return read(path)
        model = read(str(timing.MODEL))
        weights = json.loads(model).get("weights_sha256", "") if model else ""
        facts = timing.of_run(weights, root).get(Path(path).stem)
        return json.dumps(facts).encode() if facts else None

    return read_any


def timed(run: Run) -> Run:
    """The run with measures such as timing.train.training_seconds, where this machine took them."""
    measures = dict(run.measures)
    for stage in ("train", "evaluate"):
        content = run.open(f"data/timing/{stage}.json")
        if content:
            measures |= dict(numbers(json.loads(content), f"timing.{stage}."))
    return replace(run, measures=measures)
