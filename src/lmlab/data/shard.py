"""Turn documents into shards: encode every split's text and write it as Parquet, in parallel.

The bytes written do not depend on the number of processes, nor on who they are: any executor will
do, such as the workers of a cluster that see the same folders. Each needs memory for one row group,
however large the corpus. Shards that are finished are kept outside the stage's outputs until all
are, so that work that was stopped goes on with the next one.
"""

import hashlib
import multiprocessing
import os
import shutil
import signal
from collections.abc import Iterator
from concurrent.futures import Executor, ProcessPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import Field

from lmlab.core import lifeline
from lmlab.core.files import checked, sha256, whole_file, whole_folder, write_json
from lmlab.core.params import Params
from lmlab.core.progress import ProgressBar
from lmlab.core.scratch import alone, scratch_folder
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


def build(
    params: ShardParams,
    corpus: Path,
    tokenizer_folder: Path,
    folder: Path,
    executor: Executor | None = None,
) -> ShardManifest:
    """Write the shards of every split and `manifest.json` into `folder`; return the manifest.

    Without an `executor` by processes of this machine. Raises UserError where the corpus or the
    tokenizer is missing or damaged.
    """
    if executor:  # whose workers may stand elsewhere
        corpus, tokenizer_folder = corpus.resolve(), tokenizer_folder.resolve()
    tokenizer_file = tokenizer_folder / TOKENIZER_FILE
    tokenizer = tokenizers.load(tokenizer_file)
    for split in SPLITS:
        checked(corpus / f"{split}.parquet", made_by="download")
    scratch = _scratch(corpus, tokenizer_file, params)
    with alone(scratch, on_wait=_say_waiting), whole_folder(folder) as partial:
        work: list[_Work] = []
        for split in SPLITS:
            documents = corpus / f"{split}.parquet"
            work += _plan(split, documents, scratch, tokenizer_file, params)
        written = _write_all(work, params.processes or os.cpu_count() or 1, executor)
        files: dict[str, list[ShardFile]] = {split: [] for split in SPLITS}
        for item, file in zip(work, written, strict=True):
            shutil.move(item.target, partial / file.name)
            files[item.split].append(file)
        manifest = ShardManifest(
            tokenizer_sha256=sha256(tokenizer_file),
            vocabulary_size=tokenizer.vocabulary_size,
            bos=tokenizer.bos,
            type=str(_type(tokenizer)),
            splits={split: _summed(files[split]) for split in SPLITS},
        )
        write_json(partial / FILE, manifest.record())
        shutil.rmtree(scratch, ignore_errors=True)
    return manifest


def _scratch(corpus: Path, tokenizer_file: Path, params: ShardParams) -> Path:
    """Where finished shards are kept, by all that decides them."""
    decisive = [
        *(sha256(corpus / f"{split}.parquet") for split in SPLITS),
        *(sha256(path) for path in (tokenizer_file, Path(__file__), Path(tokenizers.__file__))),
        *(str(params.megabytes), pa.__version__, np.__version__),
    ]
    key = hashlib.sha256(" ".join(decisive).encode()).hexdigest()[:20]
    return scratch_folder(f"shard-{key}").resolve()  # workers may stand elsewhere


def _say_waiting() -> None:
    print("shard: another process is making these shards; waiting for it", flush=True)


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


def _write_all(work: list[_Work], processes: int, executor: Executor | None) -> list[ShardFile]:
    """Write all shards; return what is in each, in order."""
    with ProgressBar("shard", len(work), "shards") as bar:
        written = []
        if executor:
            for future in [executor.submit(_write_shard, item) for item in work]:
                written.append(future.result())
                bar.advance(1)
            return written
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


def _write_shard(work: _Work) -> ShardFile:
    """Write one shard, unless that was done before; return what is in it."""
    noted = work.target.with_suffix(".json")
    try:
        before = ShardFile.model_validate_json(noted.read_bytes())
        if before.sha256 == sha256(work.target):
            return before
    except (OSError, ValueError):
        pass
    file = _write(work)
    write_json(noted, file.record())
    return file


def _write(work: _Work) -> ShardFile:
    """Write one shard, whole or not at all; return what is in it."""
    with whole_file(work.target) as partial:
        row_groups = _write_row_groups(work, partial)
        digest = sha256(partial)
    return ShardFile(name=work.target.name, sha256=digest, row_groups=row_groups)


def _write_row_groups(work: _Work, target: Path) -> list[Counts]:
    """Write a shard's row groups; return what is in each."""
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
    with pq.ParquetWriter(target, schema, compression="zstd") as writer:
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
