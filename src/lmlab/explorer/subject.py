"""A model to look at: at its end or at one of its snapshots, with its tokenizer."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from lmlab.core import registry
from lmlab.core.errors import UserError
from lmlab.core.files import checked, read_json
from lmlab.core.registry import Choice
from lmlab.data.tokenizers import base as tokenizers
from lmlab.data.tokenizers.base import Tokenizer
from lmlab.model import places
from lmlab.model.layers.n_gram_tables import NGramTables
from lmlab.model.models import base as models
from lmlab.model.models.base import LanguageModel
from lmlab.model.record import ModelRecord
from lmlab.training import checkpoint, snapshots
from lmlab.training.step import TrainParams

LONGEST = 32
"""Ids that spell one character at most."""
LAST = -1
"""The moment at which the run ended."""


@dataclass(frozen=True)
class Folders:
    """What a run left, as the pipeline lays it out."""

    model: Path
    tokenizer_file: Path
    snapshots: Path | None = None
    """Without it there is only the end of the run."""


class Moment(NamedTuple):
    """A moment of a run at which its weights are known."""

    step: int
    """Steps taken before it."""
    file: str
    """Of the snapshot; empty for the end of the run."""
    key: str
    """Of the weights in the snapshot: `model` before its step, `after` behind it."""


class Subject:
    """A run's model, whose weights are those of one moment at a time."""

    def __init__(
        self,
        name: str,
        model: LanguageModel,
        tokenizer: Tokenizer,
        moments: Sequence[Moment],
        folder: Path | None = None,
        parts: Mapping[str, Choice] | None = None,
    ) -> None:
        """`model` is at the last of its moments, in evaluation mode; `folder` has the others.
        `parts` are those that it was trained with, by the key of `train`; None: not known.
        """
        self.name, self.model, self.tokenizer = name, model, tokenizer
        self.moments, self.folder, self.parts = moments, folder, parts
        self._end = {name: value.clone() for name, value in model.state_dict().items()}
        self._at = len(moments) - 1

    @classmethod
    def open(cls, name: str, folders: Folders) -> "Subject":
        """A run as it lies in folders.

        Raises UserError where a file is missing or damaged, or does not belong to the others.
        """
        tokenizer = tokenizers.load(folders.tokenizer_file)
        model, saved = models.load(folders.model, torch.device("cpu"))
        if tokenizer.vocabulary_size != model.vocabulary_size:
            raise UserError(
                f"{folders.tokenizer_file} has {tokenizer.vocabulary_size:,} tokens and"
                f" {folders.model} is a model of {model.vocabulary_size:,}, so they are of two"
                " runs; run `dvc repro`"
            )
        record = _snapshot_record(folders.snapshots, saved)
        moments = [*_snapshots(record), Moment(saved.steps, "", "")]
        parts = _recalled(record["parts"]) if record else None
        return cls(name, model, tokenizer, moments, folders.snapshots, parts)

    @property
    def moment(self) -> int:
        """The number of the moment whose weights the model has."""
        return self._at

    def at(self, number: int) -> LanguageModel:
        """The model with the weights of a moment, counted from 0, or LAST. It is one object: what
        was given before changes with it.
        """
        number = range(len(self.moments))[number]
        if number != self._at:
            self.model.load_state_dict(self._weights(self.moments[number]))
            self._at = number
        return self.model

    def _weights(self, moment: Moment) -> dict[str, Tensor]:
        if not moment.file:
            return self._end
        weights: dict[str, Tensor] = self._snapshot(moment.file)[moment.key]
        return weights

    def _snapshot(self, file: str) -> dict[str, Any]:
        assert self.folder is not None
        state = checkpoint.read(checked(self.folder / file, made_by="train"))
        if state is None:
            raise UserError(f"{self.folder / file} is damaged; run `dvc repro --force train`")
        return state

    def rule_state(self, number: int) -> dict[str, Tensor] | None:
        """What the run's learning rule had learned at a moment; None where it is not known.

        It is that before the step of the moment's snapshot: at the run's end, of its last step.
        """
        until = range(len(self.moments))[number] + 1
        files = [moment.file for moment in self.moments[:until] if moment.file]
        if not files:
            return None
        state: dict[str, Tensor] = self._snapshot(files[-1])["rule"]
        return state

    def ids(self, text: str) -> list[int]:
        """The ids of a text that begins a document, BOS first."""
        return [self.tokenizer.bos, *self.tokenizer.encode(text).tolist()]

    def shown(self, ids: Sequence[int]) -> list[str]:
        """Each id as text; the BOS token and an id that is no text on its own as nothing."""
        return [self.tokenizer.token_bytes[id_].decode("utf-8", "replace") for id_ in ids]

    def pieces(self, text: str, ids: Sequence[int]) -> list[bytes]:
        """The bytes of a text that each of its ids stands for, BOS not among them. A character that
        several ids spell belongs to the last of these.
        """
        # half a surrogate pair is no character and is read as U+FFFD
        whole = text.encode("utf-16", "surrogatepass").decode("utf-16", "replace").encode()
        plain = [self.tokenizer.token_bytes[id_] for id_ in ids]
        if b"".join(plain) == whole:
            return plain
        found: list[bytes] = []
        at = 0
        while len(found) < len(ids):
            first = len(found)
            piece = plain[first]
            if not (piece and whole.startswith(piece, at)):
                spelled = self._spelled(ids[first : first + LONGEST], whole, at)
                if not spelled:
                    return plain  # no bytes of the text can be told to belong to it
                found += spelled[:-1]
                piece = spelled[-1]
            found.append(piece)
            at += len(piece)
        return found

    def _spelled(self, ids: Sequence[int], whole: bytes, at: int) -> list[bytes]:
        """What a beginning of ids decodes to, where that stands there; empty for none.

        It is as short as can be but for ids that add nothing, such as the last zeros of a number.
        """
        found: list[bytes] = []
        for count in range(1, len(ids) + 1):
            decoded = self.tokenizer.decode(np.array(ids[:count], dtype=np.uint32))
            piece = decoded.encode("utf-8", "replace")
            if found and piece != found[-1]:
                break
            if piece and whole.startswith(piece, at):
                found = [b""] * (count - 1) + [piece]
        return found

    def tables(self) -> list[str]:
        """The tables of n-grams by the names of their modules."""
        return [
            f"{name}.tables.{number}"
            for name, module in self.model.named_modules()
            if isinstance(module, NGramTables)
            for number in range(len(module.tables))
        ]

    def about(self) -> dict[str, Any]:
        """What the page has to know of it."""
        return {
            "name": self.name,
            "model": self.model.choice.record(),
            "parameters": models.parameter_count(self.model),
            "vocabulary_size": self.model.vocabulary_size,
            "tokenizer": tokenizers.part_name(self.tokenizer),
            "context": self.model.context,
            "blocks": len(self.model.blocks),
            "moments": [moment.step for moment in self.moments],
            "trained_with": {key: part.name for key, part in (self.parts or {}).items()},
            "places": places.names(self.model),
            "tables": self.tables(),
        }


def _snapshot_record(folder: Path | None, saved: ModelRecord) -> dict[str, Any] | None:
    """The record of a model's snapshots; None where there are none of this model."""
    if folder is None or not (folder / snapshots.RECORD).exists():
        return None
    record: dict[str, Any] = read_json(folder / snapshots.RECORD, made_by="train")
    found = record["vocabulary_size"], record["parts"]["model"]
    return record if found == (saved.vocabulary_size, saved.model) else None


def _recalled(records: Mapping[str, Any]) -> dict[str, Choice]:
    """The parts that a run was trained with, by the key of `train` that names them."""
    kinds = dict(registry.marked(TrainParams))
    return {key: registry.recall(kinds[key], record) for key, record in records.items()}


def _snapshots(record: Mapping[str, Any] | None) -> list[Moment]:
    """The moments of snapshots."""
    moments: list[Moment] = []
    for file in record["snapshots"] if record else []:
        step = int(file.removeprefix("step-").removesuffix(".safetensors"))
        moments += [Moment(step, file, "model")] if not moments else []
        moments.append(Moment(step + 1, file, "after"))
    return moments
