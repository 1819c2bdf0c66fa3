"""Turn documents into shards: encode every split's text and write it as Parquet, in parallel.

The bytes written do not depend on the number of processes. Each process needs memory for one row
group, however large the corpus.
"""

import multiprocessing
import os
import signal
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import Field

from lmlab.core import lifeline
from lmlab.core.files import checked, sha256, whole_folder, write_json
from lmlab.core.params import Params
from lmlab.core.progress import ProgressBar
from lmlab.data.documents import SPLITS, readable
from lmlab.data.shards import FILE, Counts, ShardedSplit, ShardFile, ShardManifest
from lmlab.data.tokenizers import base as tokenizers
from lmlab.data.tokenizers.base import Tokenizer

TOKENIZER_FILE = "tokenizer.json"


class ShardParams(Params):
    """The section `shard`."""

    megabytes: float = Field(gt=0)
    processes: int = Field(ge=0, le=4096)


class _Work(NamedTuple):
    """One shard to write: which row groups of a split's documents go into which file."""

    split: str
    source: Path
    row_groups: list[int]
    target: Path
    tokenizer: Path


def build(params: ShardParams, corpus: Path, tokenizer_folder: Path, folder: Path) -> ShardManifest:
    """Write the shards of every split and `manifest.json` into `folder`; return the manifest.

    Raises UserError where the corpus or the tokenizer is missing or damaged.
    """
    tokenizer_file = tokenizer_folder / TOKENIZER_FILE
    tokenizer = tokenizers.load(tokenizer_file)
    for split in SPLITS:
        checked(corpus / f"{split}.parquet", made_by="download")
    with whole_folder(folder) as partial:
        work: list[_Work] = []
        for split in SPLITS:
            documents = corpus / f"{split}.parquet"
            work += _plan(split, documents, partial, tokenizer_file, params)
        written = _write_all(work, params.processes or os.cpu_count() or 1)
        files: dict[str, list[ShardFile]] = {split: [] for split in SPLITS}
        for item, row_groups in zip(work, written, strict=True):
            digest = sha256(item.target)
            file = ShardFile(name=item.target.name, sha256=digest, row_groups=row_groups)
            files[item.split].append(file)
        manifest = ShardManifest(
            tokenizer_sha256=sha256(tokenizer_file),
            vocabulary_size=tokenizer.vocabulary_size,
            bos=tokenizer.bos,
            type=str(_type(tokenizer)),
            splits={split: _summed(files[split]) for split in SPLITS},
        )
        write_json(partial / FILE, manifest.record())
    return manifest


def _summed(files: list[ShardFile]) -> ShardedSplit:
    """A split's files, with the sums of what they hold."""
    groups = [group for file in files for group in file.row_groups]
    return ShardedSplit(
        tokens=sum(group.tokens for group in groups),
        bytes=sum(group.bytes for group in groups),
        documents=sum(group.documents for group in groups),
        files=files,
    )


def _plan(
    split: str, source: Path, folder: Path, tokenizer: Path, params: ShardParams
) -> Iterator[_Work]:
    """Divide a split's row groups, in order, into shards of about `megabytes` of text."""
    with readable(source):
        metadata = pq.read_metadata(source)
    text_column = metadata.schema.to_arrow_schema().get_field_index("text")
    row_groups: list[int] = []
    size = number = 0
    for index in range(metadata.num_row_groups):
        row_groups.append(index)
        size += metadata.row_group(index).column(text_column).total_uncompressed_size
        if size >= params.megabytes * 1e6 or index + 1 == metadata.num_row_groups:
            target = folder / f"{split}-{number:05d}.parquet"
            yield _Work(split, source, row_groups, target, tokenizer)
            row_groups, size = [], 0
            number += 1


def _write_all(work: list[_Work], processes: int) -> list[list[Counts]]:
    """Write all shards; return the counts of each one's row groups, in order."""
    with ProgressBar("shard", len(work), "shards") as bar:
        written = []
        row_groups = sum(len(item.row_groups) for item in work)
        # starting processes takes longer than a few row groups
        if min(processes, len(work)) <= 1 or row_groups <= 2 * len(SPLITS):
            for item in work:
                written.append(_write_shard(item))
                bar.advance(1)
            return written
        context = multiprocessing.get_context("spawn")
        workers = min(processes, len(work))
        with ProcessPoolExecutor(workers, context, initializer=lifeline.stop_with_parent) as pool:
            # a process started while Ctrl-C is ignored keeps ignoring it: only the parent answers
            handler = signal.signal(signal.SIGINT, signal.SIG_IGN)
            futures = [pool.submit(_write_shard, item) for item in work]
            signal.signal(signal.SIGINT, handler)
            try:
                for future in futures:
                    written.append(future.result())
                    bar.advance(1)
            except BaseException:
                # else the pool would wait for shards that nobody needs any more
                for worker in multiprocessing.active_children():
                    worker.terminate()
                raise
        return written


def _type(tokenizer: Tokenizer) -> np.dtype[Any]:
    """The smallest integer type that holds every id but the BOS token, which is not stored."""
    last = tokenizer.vocabulary_size - 1
    return np.min_scalar_type(last - 1 if last == tokenizer.bos else last)


def _write_shard(work: _Work) -> list[Counts]:
    """Write one shard; return the counts of each of its row groups."""
    tokenizer = tokenizers.load(work.tokenizer)
    ids_type = pa.from_numpy_dtype(_type(tokenizer))
    schema = pa.schema(
        [
            ("document", pa.int64()),
            ("part", pa.int32()),
            ("bytes", pa.int64()),
            ("tokens", pa.large_list(ids_type)),
        ]
    )
    row_groups = []
    with readable(work.source):
        source = pq.ParquetFile(work.source)
    with pq.ParquetWriter(work.target, schema, compression="zstd") as writer:
        for index in work.row_groups:
            with readable(work.source):
                table = source.read_row_group(index, columns=["document", "part", "text"])
            texts = table.column("text").to_pylist()
            ids = [tokenizer.encode(text) for text in texts]
            sizes = [len(text.encode("utf-8")) for text in texts]
            offsets = np.cumsum([0, *map(len, ids)])
            joined = pa.array(np.concatenate(ids).astype(_type(tokenizer)))
            columns = [
                table.column("document").combine_chunks(),
                table.column("part").combine_chunks(),
                pa.array(sizes, pa.int64()),
                pa.LargeListArray.from_arrays(offsets, joined),
            ]
            writer.write_table(pa.Table.from_arrays(columns, schema=schema))
            documents = table.column("part").to_pylist().count(0)
            counts = Counts(tokens=int(offsets[-1]), bytes=sum(sizes), documents=documents)
            row_groups.append(counts)
    return row_groups
