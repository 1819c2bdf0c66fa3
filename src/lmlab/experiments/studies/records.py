"""The records of a study's results: points/<arm>.json, which `lmlab study` writes.

Whatever reads points reads them here: tables, charts, scaling laws and `lmlab compare`.
"""

from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError

from lmlab.core.errors import UserError
from lmlab.core.files import read_json
from lmlab.core.params import Values

OLD_NAMES = {"operations": "flops", "vocabulary": "vocabulary_size", "broke": "diverged"}
"""What points were called before they said what they were made with."""
Rows = list[list[int | float]]


class Validation(BaseModel):
    """The loss on the validation split, in windows that do not overlap."""

    model_config = ConfigDict(frozen=True, extra="allow")

    bits_per_byte: float
    nats_per_token: float


class Result(BaseModel):
    """What one run measured, in the order in which it is written. A run that diverged has its
    curves alone.
    """

    model_config = ConfigDict(frozen=True, extra="allow")

    diverged: str = ""
    """At which step it diverged and why; empty if it did not."""
    validation: Validation | None = None
    vocabulary_size: int = 0
    bytes_per_token: float = 0.0
    parameters: int = 0
    steps: int = 0
    tokens: int = 0
    """That it was trained on; all amounts include those of a run that it went on from."""
    bytes: int | float = 0
    """Of text, that those tokens stand for."""
    flops: int | float = 0
    """Spent on training."""
    own_steps: int = 0
    """Of a run that went on from another one: its own. So are `own_bytes` and `own_flops`."""
    own_bytes: int | float = 0
    own_flops: int | float = 0
    bits_per_byte_before: float | None = None
    """What the run ended with that it went on from."""
    training_seconds: float = 0.0
    validation_seconds: float = 0.0
    tokens_per_second: float = 0.0
    step_seconds: float = 0.0
    """Of a call of the rule, where snapshots were taken; so are `step_bytes` and `angle`."""
    step_bytes: int | float = 0
    angle: Rows = []
    """Tokens, and the cosine of the rule's gradient with the true one."""
    curve: Rows = []
    """Step, and nats per token of the validation split."""
    training: Rows = []
    """Step, and nats per token of training."""
    environment: dict[str, str] = {}
    """Of old points."""

    def values(self) -> Values:
        """What was measured and written, by name; a block is a mapping, a curve a list."""
        return self.model_dump(exclude_unset=True)


class Point(BaseModel):
    """One run of an arm: what was set, and what it measured."""

    model_config = ConfigDict(frozen=True)

    at: Values
    """The swept values, by dotted key."""
    seed: int
    reported: bool | None = None
    """Whether it is one of the runs that the table is made of; None in old points."""
    result: Result

    @property
    def label(self) -> Values:
        """What was set, as it is written."""
        return {"at": self.at, "seed": self.seed, "reported": self.reported}


class Making(BaseModel):
    """What decides the points of an arm, beside the values it sweeps and the seeds."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    params: Values
    """Every param that a run used, by dotted key, of the chosen parts too."""
    flops: float
    """What each run may spend on training; 0: as many as its steps take."""
    corpus: dict[str, str]
    """The SHA-256 of the splits that a run reads, and of a tokenizer that is not fitted."""
    code: dict[str, str]
    """The first digits of the SHA-256 of every file of code that a run uses."""
    versions: dict[str, str]
    """Of Python and of the packages that compute."""
    processor: str
    """Results of different processors differ in their last digits, and then by more."""


class ArmRecord(BaseModel):
    """What stands in a file of points."""

    model_config = ConfigDict(frozen=True)

    arm: str
    best: Values
    """The swept values that did best."""
    made: Making | None = None
    """None in old points, which do not say it."""
    points: list[Point]

    @property
    def reported(self) -> list[Point]:
        """The runs that a table is made of; of an arm that has none, those of its sweep at the
        best value.
        """
        return [point for point in self.points if point.reported] or self.at_best

    @property
    def at_best(self) -> list[Point]:
        """The runs at the best of the swept values."""
        return [point for point in self.points if point.at == self.best]

    def as_json(self) -> Values:
        """The content of its file, in which a point is one block."""
        points = [{**point.label, **point.result.values()} for point in self.points]
        made = {} if self.made is None else {"made": self.made.model_dump()}
        return {"arm": self.arm, "best": self.best, **made, "points": points}


def read(path: Path) -> ArmRecord:
    """The record in points/<arm>.json of a study. Raises UserError where it is damaged."""
    try:
        return _parsed(path.stem, read_json(path, made_by="study"))
    except (UserError, ValidationError, TypeError, KeyError):
        raise UserError(
            f"{path} is missing or damaged; take it back with `git checkout {path}`, or delete it"
            " and run `lmlab study` again"
        ) from None


def _parsed(arm: str, record: Any) -> ArmRecord:
    points = [_point(values) for values in record["points"]]
    return ArmRecord.model_validate({"arm": arm, **record, "points": points})


def _point(values: Values) -> Point:
    measured = {OLD_NAMES.get(name, name): value for name, value in values.items()}
    at, seed, reported = (measured.pop(name, None) for name in ("at", "seed", "reported"))
    return Point.model_validate({"at": at, "seed": seed, "reported": reported, "result": measured})
