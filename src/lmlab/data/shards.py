"""Shards of token ids in Parquet, as `shard` writes them: their manifest, verification and reading.

A row is a part of a document: its number, its byte count, and its ids in the smallest integer type
that fits. A row group holds a few mebibytes of text; shards are written, read and shuffled by row
group. The BOS token is not stored: reading inserts it before each document.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple, Self

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from lmlab.core.errors import UserError
from lmlab.core.files import Record, missing, read_record, sha256
from lmlab.data.tokenizers.base import Ids

FILE = "manifest.json"
CORRUPTED = "run `dvc repro --force shard` to make it again"


class Counts(Record):
    """How much a row group holds; BOS tokens are not counted."""

    tokens: int
    bytes: int
    """Of the text, in UTF-8."""
    documents: int
    """How many documents begin in it."""


class ShardFile(Record):
    """One Parquet file, and what each of its row groups holds."""

    name: str
    sha256: str
    row_groups: list[Counts]


class ShardedSplit(Counts):
    """What a split holds, and its files in order."""

    files: list[ShardFile]


class ShardManifest(Record):
    """The manifest.json of some shards."""

    tokenizer_sha256: str
    vocabulary_size: int
    """How many ids there are, the BOS token included."""
    bos: int
    """The id of the BOS token."""
    type: str
    """The integer type in which the ids are stored."""
    splits: dict[str, ShardedSplit]

    @classmethod
    def read(cls, folder: Path) -> Self:
        """The manifest in a folder of shards. Raises UserError where it is missing or damaged."""
        return read_record(folder / FILE, cls, made_by="shard")


class RowGroup(NamedTuple):
    """Where a row group is, and how many ids reading it gives, BOS tokens included."""

    file: Path
    number: int
    length: int


@dataclass(frozen=True)
class Shards:
    """The shards of one tokenizer, verified and ready to be read."""

    folder: Path
    manifest: ShardManifest
    ids_type: np.dtype[Any]
    """The integer type of what is read, which holds the BOS token too."""

    @property
    def vocabulary_size(self) -> int:
        """How many ids there are, the BOS token included."""
        return self.manifest.vocabulary_size

    @property
    def bos(self) -> int:
        """The id of the BOS token."""
        return self.manifest.bos

    @property
    def fingerprint(self) -> str:
        """The manifest in one line: it holds the SHA-256 of every shard and of the tokenizer."""
        return json.dumps(self.manifest.record(), sort_keys=True)

    def count(self, split: str, unit: Literal["tokens", "bytes", "documents"]) -> int:
        """How many tokens (without BOS), bytes or documents a split has."""
        counts = self.manifest.splits[split]
        return {"tokens": counts.tokens, "bytes": counts.bytes, "documents": counts.documents}[unit]

    def bytes_per_token(self, split: str) -> float:
        """Of text, before it became tokens."""
        return self.count(split, "bytes") / self.count(split, "tokens")

    def row_groups(self, split: str) -> list[RowGroup]:
        """The row groups of a split in order."""
        groups = []
        for file in self.manifest.splits[split].files:
            path = self.folder / file.name
            for number, counts in enumerate(file.row_groups):
                groups.append(RowGroup(path, number, counts.tokens + counts.documents))
        return groups

    def read(self, group: RowGroup) -> Ids:
        """The ids of a row group, with the BOS token before each document that begins in it.

        Shape (group.length,). Raises UserError where the file is missing, damaged or another one.
        """
        try:
            file = pq.ParquetFile(group.file)
            table = file.read_row_group(group.number, columns=["part", "tokens"])
        except (OSError, pa.ArrowInvalid):
            raise UserError(f"{group.file} is missing or damaged; {CORRUPTED}") from None
        rows = table.column("tokens").combine_chunks()
        ids = rows.values.to_numpy().astype(self.ids_type)
        row_starts = rows.offsets.to_numpy()[:-1]
        begins_document = table.column("part").to_numpy() == 0
        stream = np.insert(ids, row_starts[begins_document], self.bos)
        if len(stream) != group.length:
            raise UserError(f"{group.file} is not the one its manifest describes; {CORRUPTED}")
        return stream

    def stream(self, split: str) -> Ids:
        """All ids of a split, each document preceded by the BOS token."""
        groups = self.row_groups(split)
        if not groups:
            return np.zeros(0, self.ids_type)
        return np.concatenate([self.read(group) for group in groups])


def open_shards(folder: Path, tokenizer_file: Path) -> Shards:
    """Open shards, verified against their manifest and the tokenizer.

    Raises UserError naming the file that is missing, damaged or of another tokenizer.
    """
    manifest = ShardManifest.read(folder)
    try:
        tokenizer_sha256 = sha256(tokenizer_file)
        for split in manifest.splits.values():
            for file in split.files:
                path = folder / file.name
                if sha256(path) != file.sha256:
                    raise UserError(
                        f"{path} was changed or cut short since it was written; {CORRUPTED}"
                    )
    except FileNotFoundError as error:
        raise missing(Path(error.filename), made_by="shard") from None
    if manifest.tokenizer_sha256 != tokenizer_sha256:
        raise UserError(
            f"{folder} was made with another tokenizer than {tokenizer_file}; run `dvc repro shard`"
        )
    return Shards(folder, manifest, np.min_scalar_type(manifest.vocabulary_size - 1))
