"""`model.json` of a saved model as typed records: what it is built from and how it was trained."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from lmlab.core.errors import UserError
from lmlab.core.files import read_json
from lmlab.core.registry import Choice
from lmlab.data.start import EarlierRun

FILE = "model.json"
MOST_LISTED = 3
"""Params in which two models differ, in a message."""


class Record(BaseModel):
    """A part of the file. The fields stand in the order of its keys."""

    model_config = ConfigDict(frozen=True, strict=True, protected_namespaces=())


class Divergence(Record):
    """Where a run diverged."""

    step: int
    """The step that could not be taken, counted from 1."""
    reason: str


class GroupSize(Record):
    """One of the optimizer's parameter groups."""

    tensors: int
    parameters: int
    learning_rate: float
    """The peak."""
    weight_decay: float


class MemoryBytes(Record):
    """What a training step holds in memory; None where it was not counted."""

    weights: int
    gradients: int
    activations: int | None
    """Kept for the backward pass of the windows that go through the model together."""
    optimizer: int | None = None
    """The optimizer's state, which it has after its first step."""

    def counted(self) -> dict[str, int]:
        """The counted ones by name."""
        return {name: count for name, count in self if count is not None}


class RunSize(Record):
    """A model's parameters, and what a training step costs."""

    width: int
    blocks: int
    batch: int
    """Windows a step."""
    groups: dict[str, GroupSize]
    parameters: dict[str, int]
    """Trainable parameters by the model's part."""
    forward_flops_per_token: int | None
    """FLOPs of a forward pass for each token; None where they were not counted."""
    bytes: MemoryBytes


class TrainingFacts(Record):
    """How a model was trained. Amounts are totals, of this run and all that it went on from."""

    status: Literal["finished", "diverged"] = "finished"
    diverged: Divergence | None = None
    tokenizer_sha256: str
    steps: int
    """Steps taken; of a run that diverged fewer than it was to take."""
    seed: int
    data_seed: int
    pool_tokens: int
    """Tokens that the order of the text shuffles at a time."""
    precision: str
    """Of matrix products: float32 or bfloat16."""
    tokens: int
    """Tokens trained on, repetitions included."""
    bytes: int = 0
    """Bytes of text that those tokens stand for, by each text's mean."""
    flops: int = 0
    """FLOPs that backpropagation takes to train on those tokens."""
    earlier: list[EarlierRun] = []
    """The runs before this one, the first one first; none of a run from scratch."""
    size: RunSize


class ModelRecord(TrainingFacts):
    """The whole of `model.json`."""

    model: dict[str, Any]
    """The model part with all its options, as `registry.recall` reads it."""
    vocabulary_size: int
    context: int
    parameters: int
    """Trainable parameters; a tied weight counts once."""
    weights_sha256: str

    @property
    def forward_flops_per_token(self) -> int:
        """FLOPs of a forward pass for each token, which are counted for every run that begins."""
        flops = self.size.forward_flops_per_token
        assert flops is not None
        return flops


def damaged(folder: Path, error: Exception, made_by: str = "train") -> UserError:
    """The error to raise for a saved model, made by a stage, that cannot be read."""
    reason = " ".join(str(error).removeprefix("params.yaml: ").split())[:200]
    return UserError(
        f"{folder} is damaged or of another version of the model ({reason}); run `dvc repro"
        f" --force {made_by}` to make it again"
    )


def read_record(folder: Path, made_by: str = "train") -> ModelRecord:
    """The record of the model in a folder, which a stage has made. Raises UserError where it is
    missing or damaged.
    """
    values = read_json(folder / FILE, made_by=made_by)
    try:
        return ModelRecord.model_validate(values)
    except ValidationError as error:
        raise damaged(folder, error, made_by) from None


def earlier_run(
    saved: ModelRecord,
    commit: str,
    recipe: str,
    made_with: Mapping[str, Any],
    bits_per_byte: float | None,
) -> EarlierRun:
    """A run as the next one's ledger has it; `made_with` are its params by dotted key."""
    return EarlierRun(
        commit=commit,
        recipe=recipe,
        weights_sha256=saved.weights_sha256,
        corpus=str(made_with.get("download.corpus", "")),
        tokenizer_sha256=saved.tokenizer_sha256,
        learning_rule=str(made_with.get("train.learning_rule", "")),
        optimizer=str(made_with.get("train.optimizer", "")),
        steps=saved.steps,
        tokens=saved.tokens,
        bytes=saved.bytes,
        flops=saved.flops,
        bits_per_byte=bits_per_byte,
    )


def check_parts(saved: ModelRecord, choice: Choice) -> None:
    """Raise UserError where a saved model has other parts than those chosen."""
    wanted = choice.record()
    if saved.model == wanted:
        return
    different = differences(saved.model, wanted, f"models.{choice.name}")
    raise UserError(
        f"params.yaml: the start's model has other parts: {'; '.join(different)};"
        " set them back, take another start, or let it grow (start.growth)"
    )


def differences(saved: Any, wanted: Any, at: str) -> list[str]:
    """The first params in which two records of a part differ, each with its value in both."""
    if saved.get("name") != wanted.get("name"):
        at = "train.model"  # the key that chooses it
    return list(_different(saved, wanted, at))[:MOST_LISTED]


def _different(saved: Any, wanted: Any, at: str) -> Iterator[str]:
    """The params in which two records of a part differ, a line each."""
    if saved.get("name") != wanted.get("name"):
        yield f"{at}: {wanted.get('name')} (the start's: {saved.get('name')})"
        return
    for key, value in wanted.get("options", {}).items():
        if key in wanted.get("inner", {}):
            continue
        if saved.get("options", {}).get(key) != value:
            yield f"{at}.{key}: {value} (the start's: {saved.get('options', {}).get(key)})"
    for key, inner in wanted.get("inner", {}).items():
        yield from _different(saved.get("inner", {}).get(key, {}), inner, f"{at}.{key}")
