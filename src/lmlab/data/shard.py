"""Documents become shards: every split's text encoded and written as Parquet, by several processes
where that helps.

The bytes written do not depend on how many processes share the work. Memory stays at a row group a
process, however large the corpus.
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
from lmlab.data.tokenizers import base as tokenizers
from lmlab.data.tokenizers.base import Tokenizer

TOKENIZER_FILE = "tokenizer.json"


class ShardParams(Params):
    """The section `shard`."""

    megabytes: float = Field(gt=0)
    processes: int = Field(ge=0, le=4096)


class _Work(NamedTuple):
    """One shard to write: the row groups of one split's documents."""

    split: str
    source: Path
    row_groups: list[int]
    target: Path
    tokenizer: Path


def build(
    params: ShardParams, corpus: Path, tokenizer_folder: Path, folder: Path
) -> dict[str, Any]:
    """Write the shards of every split and `manifest.json` into `folder`; return the manifest."""
    tokenizer_file = tokenizer_folder / TOKENIZER_FILE
    tokenizer = tokenizers.load(tokenizer_file)
    for split in SPLITS:
        checked(corpus / f"{split}.parquet", made_by="download")
    with whole_folder(folder) as made:
        work = [
            item
            for split in SPLITS
            for item in _plan(split, corpus / f"{split}.parquet", made, tokenizer_file, params)
        ]
        written = _write_all(work, params.processes or os.cpu_count() or 1)
        splits: dict[str, dict[str, Any]] = {
            split: {"tokens": 0, "bytes": 0, "documents": 0, "files": []} for split in SPLITS
        }
        for item, groups in zip(work, written, strict=True):
            entry = splits[item.split]
            for key in ("tokens", "bytes", "documents"):
                entry[key] += sum(group[key] for group in groups)
            entry["files"].append(
                {"name": item.target.name, "sha256": sha256(item.target), "row_groups": groups}
            )
        manifest = {
            "tokenizer_sha256": sha256(tokenizer_file),
            "vocabulary_size": tokenizer.vocabulary_size,
            "bos": tokenizer.bos,
            "type": str(_type(tokenizer)),
            "splits": splits,
        }
        write_json(made / "manifest.json", manifest)
    return manifest


def _plan(
    split: str, source: Path, folder: Path, tokenizer: Path, params: ShardParams
) -> Iterator[_Work]:
    """Consecutive row groups, about `megabytes` of text to a shard."""
    with readable(source):
        metadata = pq.read_metadata(source)
    text = metadata.schema.to_arrow_schema().get_field_index("text")
    group: list[int] = []
    size, number = 0, 0
    for index in range(metadata.num_row_groups):
        group.append(index)
        size += metadata.row_group(index).column(text).total_uncompressed_size
        if size >= params.megabytes * 1e6 or index + 1 == metadata.num_row_groups:
            yield _Work(split, source, group, folder / f"{split}-{number:05d}.parquet", tokenizer)
            group, size, number = [], 0, number + 1


def _write_all(work: list[_Work], processes: int) -> list[list[dict[str, int]]]:
    with ProgressBar("shard", len(work), "shards") as bar:
        groups = []
        if min(processes, len(work)) <= 1 or sum(len(item.row_groups) for item in work) <= 2 * len(
            SPLITS
        ):
            for item in work:  # starting processes would take longer than the work
                groups.append(_write_shard(item))
                bar.advance(1)
            return groups
        context = multiprocessing.get_context("spawn")
        with ProcessPoolExecutor(
            min(processes, len(work)), context, initializer=lifeline.stop_with_parent
        ) as pool:
            # what ignores Ctrl-C when it is started goes on to: it is for the parent to answer, in
            # one line
            answer = signal.signal(signal.SIGINT, signal.SIG_IGN)
            results = [pool.submit(_write_shard, item) for item in work]
            signal.signal(signal.SIGINT, answer)
            try:
                for result in results:
                    groups.append(result.result())
                    bar.advance(1)
            except BaseException:
                for worker in multiprocessing.active_children():
                    # or the pool would wait for shards that nobody wants any more
                    worker.terminate()
                raise
        return groups


def _type(tokenizer: Tokenizer) -> np.dtype[Any]:
    """The smallest type that holds every id of text: all but the BOS token, which is not stored."""
    last = tokenizer.vocabulary_size - 1
    return np.min_scalar_type(last - 1 if last == tokenizer.bos else last)


def _write_shard(work: _Work) -> list[dict[str, int]]:
    """Write one shard; return the tokens, bytes and documents of each of its row groups."""
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
    groups = []
    with readable(work.source):
        source = pq.ParquetFile(work.source)
    with pq.ParquetWriter(work.target, schema, compression="zstd") as writer:
        for index in work.row_groups:
            with readable(work.source):
                read = source.read_row_group(index, columns=["document", "part", "text"])
            texts = read.column("text").to_pylist()
            ids = [tokenizer.encode(text) for text in texts]
            sizes = [len(text.encode("utf-8")) for text in texts]
            offsets = np.cumsum([0, *map(len, ids)])
            tokens = pa.LargeListArray.from_arrays(
                offsets, pa.array(np.concatenate(ids).astype(_type(tokenizer)))
            )
            columns = [
                read.column("document").combine_chunks(),
                read.column("part").combine_chunks(),
                pa.array(sizes, pa.int64()),
                tokens,
            ]
            writer.write_table(pa.Table.from_arrays(columns, schema=schema))
            starts = sum(part == 0 for part in read.column("part").to_pylist())
            groups.append({"tokens": int(offsets[-1]), "bytes": sum(sizes), "documents": starts})
    return groups
