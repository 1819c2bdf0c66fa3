"""A model to look at: at its end or at one of its snapshots, with its tokenizer."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from lmlab.core.errors import UserError
from lmlab.core.files import checked, read_json
from lmlab.data.tokenizers import base as tokenizers
from lmlab.data.tokenizers.base import Tokenizer
from lmlab.model import places
from lmlab.model.layers.n_gram_tables import NGramTables
from lmlab.model.models import base as models
from lmlab.model.models.base import LanguageModel
from lmlab.model.record import ModelRecord
from lmlab.training import checkpoint, snapshots

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
    ) -> None:
        """`model` is at the last of its moments, in evaluation mode; `folder` has the others."""
        self.name, self.model, self.tokenizer = name, model, tokenizer
        self.moments, self.folder = moments, folder
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
        moments = [*_snapshots(folders.snapshots, saved), Moment(saved.steps, "", "")]
        return cls(name, model, tokenizer, moments, folders.snapshots)

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
        assert self.folder is not None
        state = checkpoint.read(checked(self.folder / moment.file, made_by="train"))
        if state is None:
            raise UserError(
                f"{self.folder / moment.file} is damaged; run `dvc repro --force train`"
            )
        weights: dict[str, Tensor] = state[moment.key]
        return weights

    def ids(self, text: str) -> list[int]:
        """The ids of a text that begins a document, BOS first."""
        return [self.tokenizer.bos, *self.tokenizer.encode(text).tolist()]

    def shown(self, ids: Sequence[int]) -> list[str]:
        """Each id as text; the BOS token and an id that is no text on its own as nothing."""
        return [self.tokenizer.token_bytes[id_].decode("utf-8", "replace") for id_ in ids]

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
            "places": places.names(self.model),
            "tables": self.tables(),
        }


def _snapshots(folder: Path | None, saved: ModelRecord) -> list[Moment]:
    """The moments of a model's snapshots; none where there are none of this model."""
    if folder is None or not (folder / snapshots.RECORD).exists():
        return []
    record = read_json(folder / snapshots.RECORD, made_by="train")
    if (record["vocabulary_size"], record["parts"]["model"]) != (
        saved.vocabulary_size,
        saved.model,
    ):
        return []
    moments: list[Moment] = []
    for file in record["snapshots"]:
        step = int(file.removeprefix("step-").removesuffix(".safetensors"))
        moments += [Moment(step, file, "model")] if not moments else []
        moments.append(Moment(step + 1, file, "after"))
    return moments
