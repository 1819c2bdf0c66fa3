"""Shards of token ids in Parquet, as `shard` leaves them: verified when opened, and read back as a
stream.

A row is a part of a document: its number, its byte count, and its ids in the smallest integer type
that fits. A row group holds a few mebibytes of text, the unit in which shards are written, read and
shuffled. The BOS token is not stored: it is put before each document when a stream is read.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from lmlab.core.errors import UserError
from lmlab.core.files import missing, read_json, sha256
from lmlab.data.tokenizers.base import Ids

CORRUPTED = "run `dvc repro --force shard` to make it again"


class RowGroup(NamedTuple):
    """Where one row group lies, and how many ids its stream has, BOS tokens included."""

    file: Path
    number: int
    length: int


@dataclass(frozen=True)
class Shards:
    """The shards of one tokenizer, verified and ready to be read."""

    folder: Path
    manifest: dict[str, Any]
    ids_type: np.dtype[Any]

    @property
    def vocabulary_size(self) -> int:
        """How many ids there are, the BOS token included."""
        return int(self.manifest["vocabulary_size"])

    @property
    def bos(self) -> int:
        """The id of the BOS token."""
        return int(self.manifest["bos"])

    @property
    def fingerprint(self) -> str:
        """The manifest in one line: it holds the sha256 of every shard and of the tokenizer."""
        return json.dumps(self.manifest, sort_keys=True)

    def count(self, split: str, what: str) -> int:
        """How many "tokens", "bytes" or "documents" a split has; the BOS tokens are not counted as
        tokens.
        """
        return int(self.manifest["splits"][split][what])

    def row_groups(self, split: str) -> list[RowGroup]:
        """The row groups of a split in order."""
        return [
            RowGroup(self.folder / file["name"], index, group["tokens"] + group["documents"])
            for file in self.manifest["splits"][split]["files"]
            for index, group in enumerate(file["row_groups"])
        ]

    def read(self, group: RowGroup) -> Ids:
        """The ids of a row group, with the BOS token before each document's first part."""
        try:
            table = pq.ParquetFile(group.file).read_row_group(
                group.number, columns=["part", "tokens"]
            )
        except (OSError, pa.ArrowInvalid):
            raise UserError(f"{group.file} is missing or damaged; {CORRUPTED}") from None
        rows = table.column("tokens").combine_chunks()
        ids = rows.values.to_numpy().astype(self.ids_type)
        starts = rows.offsets.to_numpy()[:-1][table.column("part").to_numpy() == 0]
        stream = np.insert(ids, starts, self.bos)
        if len(stream) != group.length:
            raise UserError(f"{group.file} is not the one its manifest describes; {CORRUPTED}")
        return stream

    def stream(self, split: str) -> Ids:
        """All ids of a split, each document preceded by the BOS token."""
        groups = self.row_groups(split)
        return (
            np.concatenate([self.read(group) for group in groups])
            if groups
            else np.zeros(0, self.ids_type)
        )


def open_shards(folder: Path, tokenizer_file: Path) -> Shards:
    """Verify the shards against their manifest and the tokenizer. Raises UserError naming the file
    that does not fit.
    """
    manifest = read_json(folder / "manifest.json", made_by="shard")
    try:
        files = [file for split in manifest["splits"].values() for file in split["files"]]
        fits = manifest["tokenizer_sha256"] == sha256(tokenizer_file)
        shards = Shards(folder, manifest, np.min_scalar_type(manifest["vocabulary_size"] - 1))
        for file in files:
            if sha256(folder / file["name"]) != file["sha256"]:
                raise UserError(
                    f"{folder / file['name']} was changed or cut short since it was written;"
                    f" {CORRUPTED}"
                )
    except FileNotFoundError as error:
        raise missing(Path(error.filename), made_by="shard") from None
    except (KeyError, TypeError, AttributeError):
        raise UserError(f"{folder / 'manifest.json'} is damaged; {CORRUPTED}") from None
    if not fits:
        raise UserError(
            f"{folder} was made with another tokenizer than {tokenizer_file}; run `dvc repro shard`"
        )
    return shards
