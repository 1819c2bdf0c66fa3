"""A run that is taken away: what every format is written from."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import torch

from lmlab.core.errors import UserError
from lmlab.core.files import sha256
from lmlab.data.tokenizers import base as tokenizers
from lmlab.data.tokenizers.base import Tokenizer
from lmlab.model.models import base as models
from lmlab.model.models.base import LanguageModel
from lmlab.model.record import ModelRecord


@dataclass(frozen=True)
class Folders:
    """What a run left, as the pipeline lays it out."""

    model: Path
    tokenizer_file: Path
    corpus: Path | None = None
    """None where the text is not to be had any more."""
    made_with: Mapping[str, Any] = field(default_factory=dict)
    """The params that the run depended on, by dotted key."""
    measures: Mapping[str, Any] = field(default_factory=dict)
    """The run's measures.json; empty where it was not evaluated."""
    commit: str = ""
    """The commit that holds the run; empty where none does."""


@dataclass(frozen=True)
class Run:
    """A trained model with its tokenizer, and what is known of both."""

    name: str
    model: LanguageModel
    """In float32, on the CPU, in evaluation mode."""
    tokenizer: Tokenizer
    record: ModelRecord
    folders: Folders

    @classmethod
    def open(cls, name: str, folders: Folders) -> "Run":
        """A run as it lies in folders.

        Raises UserError where a file is missing or damaged, where model and tokenizer are of two
        runs, and where training diverged.
        """
        tokenizer = tokenizers.load(folders.tokenizer_file)
        model, record = models.load(folders.model, torch.device("cpu"))
        if sha256(folders.tokenizer_file) != record.tokenizer_sha256:
            raise UserError(
                f"{folders.model} was trained with another tokenizer than {folders.tokenizer_file}"
                " holds, so they are of two runs; run `dvc repro`"
            )
        if record.status == "diverged":
            raise UserError(
                f"{name} has nothing to take away: its training diverged; name another run"
            )
        return cls(name, model, tokenizer, record, folders)

    def text(self, split: str) -> list[str]:
        """The texts of a split's documents; none where the corpus is not to be had.

        Raises UserError where it is damaged.
        """
        if self.folders.corpus is None:
            return []
        file = self.folders.corpus / f"{split}.parquet"
        if not file.is_file():
            return []
        try:
            texts: list[str] = pq.read_table(file, columns=["text"])["text"].to_pylist()
        except (pa.ArrowException, LookupError):
            raise UserError(
                f"{file} is damaged; run `dvc repro --force download` to make it again"
            ) from None
        return texts
