"""A folder for transformers as a run that another one goes on from.

One that the lab wrote comes back as it was: the same bytes of weights, tokenizer and record. Any
other is read as far as the lab has its parts (`foreign`); its training began elsewhere.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from shutil import copyfile

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from lmlab.core.errors import UserError
from lmlab.core.files import checked, read_json, sha256, write_sums
from lmlab.core.params import Tree, Values
from lmlab.core.registry import Choice, recall
from lmlab.export import anatomy
from lmlab.export.huggingface import architectures, foreign, own_record
from lmlab.export.place import RECORD
from lmlab.model import record
from lmlab.model.models import base as models
from lmlab.model.models.base import WEIGHTS, LanguageModel
from lmlab.model.record import ModelRecord
from lmlab.training import checkpoint, continuing

MADE_BY = "export"
"""What made the folder, in messages."""


@dataclass(frozen=True)
class Brought:
    """A model from elsewhere, laid out as a run leaves it."""

    choice: Values
    """Its parts and sizes as params, by dotted key."""
    made_with: Values
    """The params that it is known to have been made with."""
    lines: list[str]
    """What to tell of it."""


def bring(folder: Path, into: Path, tree: Tree) -> Brought:
    """Lay out a folder's model as `into/model`, `into/tokenizer` and `into/state`.

    Raises UserError where it is damaged, and where the lab has not all its parts.
    """
    if (folder / RECORD).is_file():
        brought = _own(folder, into)
    elif (folder / own_record.FOLDER / own_record.MODEL).is_file():
        raise UserError(f"{folder} has lost its {RECORD}; export the run again")
    else:
        brought = _foreign(folder, into, tree)
    _write_state(into)
    return brought


def _own(folder: Path, into: Path) -> Brought:
    """A folder that the lab wrote."""
    about = _record(folder)
    own = folder / own_record.FOLDER
    for name in (own_record.MODEL, own_record.TOKENIZER, own_record.MADE_WITH):
        _checked(own / name)
    saved = record.read_record(own, MADE_BY)
    choice = recall("models", saved.model)
    model = models.build(choice, saved.vocabulary_size, saved.context)
    tensors = _tensors(folder / "model.safetensors")
    state = _own_state(model, about["architecture"], tensors, own)
    target = into / "model"
    target.mkdir(parents=True)
    save_file({name: value.clone() for name, value in state.items()}, target / WEIGHTS)
    if sha256(target / WEIGHTS) != saved.weights_sha256:
        raise UserError(
            f"{folder} holds other weights than those it was written with; export the run again"
        )
    copyfile(own / own_record.MODEL, target / own_record.MODEL)
    write_sums(target)
    (into / "tokenizer").mkdir()
    copyfile(own / own_record.TOKENIZER, into / "tokenizer" / "tokenizer.json")
    write_sums(into / "tokenizer")
    made_with = read_json(own / own_record.MADE_WITH, MADE_BY)
    tokenizer = str(read_json(own / own_record.TOKENIZER, MADE_BY)["tokenizer"])
    line = f"{folder}: as the lab wrote it, {saved.parameters:,} parameters"
    return Brought(_params(choice, saved, tokenizer), made_with, [line])


def _record(folder: Path) -> dict[str, str]:
    """What an export says of itself. Raises UserError where it is damaged, or another format."""
    try:
        about = json.loads((folder / RECORD).read_text(encoding="utf-8"))
        found = {key: str(about[key]) for key in ("format", "run", "weights_sha256")}
    except (OSError, ValueError, LookupError, TypeError):
        raise UserError(f"{folder / RECORD} is damaged; export the run again") from None
    if found["format"] != "huggingface":
        raise UserError(
            f"{folder} is an export for another tool ({found['format']}), from which no run begins;"
            " `lmlab export huggingface` writes one from which a run can"
        )
    return {**found, "architecture": str(about.get("architecture"))}


def _own_state(
    model: LanguageModel, name: str, tensors: dict[str, Tensor], own: Path
) -> dict[str, Tensor]:
    """The lab's state of a model out of the tensors of an export."""
    known = {each.name: each for each in architectures.ARCHITECTURES}
    try:
        if name not in known:
            return {key: tensors[f"model.{key}"] for key in model.state_dict()}
        shapes = anatomy.weights(model)
        apart = own_record.taken_back(known[name], anatomy.of(model), shapes, tensors)
        return anatomy.whole(model, apart | own_record.read_folded(own))
    except (KeyError, RuntimeError, SafetensorError) as error:
        raise UserError(
            f"{own.parent} is damaged: {' '.join(str(error).split())[:120]}; export the run again"
        ) from None


def _checked(path: Path) -> Path:
    """A file of an export. Raises UserError where it is missing, or other than its sum says."""
    try:
        return checked(path, MADE_BY)
    except UserError:
        raise UserError(f"{path} is damaged or missing; export the run again") from None


def _tensors(path: Path) -> dict[str, Tensor]:
    if not path.exists():
        raise UserError(
            f"{path} is missing: the weights have to be in this one file, not in several"
            " (model-00001-of-…) and not in .bin; save them with"
            " `model.save_pretrained(folder, max_shard_size='100GB')`"
        )
    try:
        return load_file(_checked(path) if (path.parent / RECORD).is_file() else path)
    except (SafetensorError, OSError) as error:
        reason = " ".join(str(error).split())[:120]
        raise UserError(f"{path} cannot be read ({reason}); take the folder anew") from None


def _foreign(folder: Path, into: Path, tree: Tree) -> Brought:
    """A folder from elsewhere."""
    read = foreign.read(folder, _tensors(folder / "model.safetensors"), tree)
    read.write(into)
    saved = record.read_record(into / "model", MADE_BY)
    lines = [
        f"{folder}: a model of {saved.parameters:,} parameters ({read.architecture}) that was"
        " trained elsewhere, so what begins with it is not from scratch, and what its training"
        " cost is not counted",
        *read.remarks,
    ]
    choice = read.model.choice
    return Brought(_params(choice, saved, "bpe"), {"download.corpus": foreign.CORPUS}, lines)


def _params(choice: Choice, saved: ModelRecord, tokenizer: str) -> Values:
    """What params.yaml has to say for a run to have this model."""
    values: Values = {
        "train.model": choice.name,
        "train.context": saved.context,
        "tokenizer.name": tokenizer,
    }
    return values | _options(choice)


def _options(choice: Choice) -> Values:
    """A part's options and those of the parts it is built from, by dotted key."""
    block = f"{choice.kind}.{choice.name}"
    values = {f"{block}.{key}": value for key, value in choice.options.model_dump().items()}
    for inner in choice.inner.values():
        values |= _options(inner)
    return values


def _write_state(into: Path) -> None:
    """What a run hands on beside its model, of one that hands on nothing else."""
    weights = load_file(into / "model" / WEIGHTS)
    position = continuing.Position(shards="", context=0, seed=0, pool_tokens=0, windows=0)
    state = {
        "model": weights,
        "rule": {},
        "optimizer": {},
        "parts": dict.fromkeys((*continuing.RULE, "optimizer"), ""),
        "optimizer_options": {},
        "position": vars(position),
    }
    (into / "state").mkdir()
    checkpoint.write(into / "state" / continuing.FILE, state)
    write_sums(into / "state")
