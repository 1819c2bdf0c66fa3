"""A finished run that another one goes on from, as the stage `start` lays it out in a folder."""

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

from pydantic import ValidationInfo, field_validator

from lmlab.core.errors import UserError
from lmlab.core.files import Record, read_record
from lmlab.core.params import Names, Params, Values
from lmlab.core.registry import Choice, OneOf

RECORD, MODEL, TOKENIZER, STATE = "start.json", "model", "tokenizer", "state"
"""In the folder: the record, and the folders that the run had written."""
STAYS = "identity"
"""The migration of a run that has its start's tokenizer."""
HASHES = {"commit": r"([0-9a-f]{40})?", "model": r"([0-9a-f]{64})?"}
"""What the names of a commit and of a model's weights look like, in full."""
AS_IT_WAS: Values = {
    "start.migration": STAYS,
    "start.growth": [],
    "start.optimizer_state": "auto",
}
"""The params of a run that changes nothing of the one it goes on from."""
FROM_SCRATCH: Values = {"start.commit": "", "start.model": "", **AS_IT_WAS}
"""The params of a run that goes on from none."""


class StartParams(Params):
    """The section `start`."""

    commit: str
    """The full name of the commit of a finished run; empty: from scratch."""
    model: str
    """SHA-256 of its weights."""
    migration: Annotated[str, OneOf("migrations")]
    """How the rows of new tokens come about; STAYS: the start's tokenizer stays."""

    growth: Names
    """By which growths, in turn, the model becomes larger than the start's."""
    optimizer_state: Literal["auto", "carried", "anew"]
    """Whether the optimizer's state is taken over; auto: unless there is another tokenizer."""

    @field_validator("commit", "model")
    @classmethod
    def _written_in_full(cls, value: str, info: ValidationInfo) -> str:
        if not re.fullmatch(HASHES[str(info.field_name)], value):
            raise ValueError(
                "takes a hash in full, which `lmlab start NAME` writes for an experiment, branch,"
                " commit or folder; '' is from scratch"
            )
        return value

    @field_validator("growth", mode="before")
    @classmethod
    def _one_alone(cls, value: Any) -> Any:
        return [value] if isinstance(value, str) and value else value

    @property
    def has_another_tokenizer(self) -> bool:
        """Whether the run has a tokenizer of its own and no start's."""
        return not self.commit or self.migration != STAYS

    @property
    def carries_optimizer_state(self) -> bool:
        """Whether the optimizer goes on with what it remembers."""
        if self.optimizer_state == "auto":
            return not self.has_another_tokenizer
        return self.optimizer_state == "carried"


class EarlierRun(Record):
    """A run that another one went on from. Amounts are totals, of this run and all before it."""

    commit: str
    """The full name of its commit."""
    recipe: str
    """What tells it from others but for seeds: its corpus, its steps and a hash of all params that
    mattered, such as `shakespeare:1200:3f2a9c`.
    """
    weights_sha256: str
    corpus: str
    """The name of its last text."""
    tokenizer_sha256: str
    learning_rule: str
    optimizer: str
    steps: int
    tokens: int
    bytes: int
    flops: int
    bits_per_byte: float | None
    """Of its own validation split, in windows that do not overlap; None where that was not read."""


class Spent(NamedTuple):
    """What runs have cost altogether."""

    steps: int = 0
    tokens: int = 0
    bytes: int = 0
    flops: int = 0


def spent(earlier: Sequence[EarlierRun]) -> Spent:
    """What a run and all before it have cost; zeros where there is none."""
    if not earlier:
        return Spent()
    last = earlier[-1]
    return Spent(last.steps, last.tokens, last.bytes, last.flops)


class StartRecord(Record):
    """start.json: which run it is. Empty where training begins from scratch."""

    commit: str = ""
    model: str = ""
    """SHA-256 of its weights."""
    earlier: list[EarlierRun] = []
    """That run, after all that it went on from itself."""


@dataclass(frozen=True)
class Start:
    """A finished run to go on from, by its folders."""

    model: Path
    """Weights as evaluation would use them, and model.json."""
    tokenizer: Path
    state: Path
    """What training needs beside the model."""
    earlier: list[EarlierRun] = field(default_factory=list)
    """That run after all before it; empty where what they cost does not count."""
    made_by: str = "start"
    """The stage that wrote the folders."""
    migration: Choice | None = None
    """How rows come about where the run has another tokenizer; None where it has the start's."""
    growths: tuple[Choice, ...] = ()
    """By which, in turn, the model becomes larger."""
    carries_optimizer_state: bool = True

    @property
    def tokenizer_file(self) -> Path:
        return self.tokenizer / "tokenizer.json"


def read(folder: Path, commit: str) -> Start | None:
    """The start in a folder; None where `commit`, from params.yaml, is empty: from scratch.

    Raises UserError where the folder holds another start.
    """
    if not commit:
        return None
    found = read_record(folder / RECORD, StartRecord, made_by="start")
    if found.commit != commit:
        raise UserError(
            f"{folder} holds the run of {found.commit or 'no commit'}, and params.yaml names"
            f" {commit} as start.commit; run `dvc repro start`"
        )
    return Start(folder / MODEL, folder / TOKENIZER, folder / STATE, found.earlier)
