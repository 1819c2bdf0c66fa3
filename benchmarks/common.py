"""What benchmarks share: the way from a corpus to shards, a clock, and the table that each prints
and writes.
"""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import typer

from lmlab.core import params, registry
from lmlab.core.params import Tree
from lmlab.data import collect as collecting
from lmlab.data import documents
from lmlab.data import shard as sharding
from lmlab.data.collect import DownloadParams
from lmlab.data.shard import ShardParams
from lmlab.data.shards import Shards, open_shards
from lmlab.data.tokenizers import base as tokenizers
from lmlab.data.tokenizers.base import Tokenizer, TokenizerParams

FOLDER = Path(__file__).parent
RESULTS = FOLDER / "results"


def download(tree: Tree, folder: Path) -> None:
    """The stage `download`, without the checks that need the project's folder."""
    chosen = params.section(tree, "download", DownloadParams)
    collecting.build(
        chosen, registry.choices(tree, "download", chosen)["corpus"].build(), folder / "corpus"
    )


def fit_tokenizer(tree: Tree, folder: Path) -> Tokenizer:
    """The stage `tokenizer`."""
    chosen = registry.choices(
        tree, "tokenizer", params.section(tree, "tokenizer", TokenizerParams)
    )["name"]
    fitted = tokenizers.fit(
        chosen, (text for _, _, text in documents.read_parts(folder / "corpus" / "train.parquet"))
    )
    tokenizers.save(chosen, fitted, folder / "tokenizer" / "tokenizer.json")
    return fitted


def shard(tree: Tree, folder: Path) -> None:
    """The stage `shard`."""
    chosen = params.section(tree, "shard", ShardParams)
    sharding.build(chosen, folder / "corpus", folder / "tokenizer", folder / "shards")


def prepare(tree: Tree, folder: Path) -> tuple[Shards, Tokenizer]:
    """All three: from the corpus to shards, in a folder."""
    download(tree, folder)
    tokenizer = fit_tokenizer(tree, folder)
    shard(tree, folder)
    return open_shards(folder / "shards", folder / "tokenizer" / "tokenizer.json"), tokenizer


def seconds(work: Callable[[], object], times: int = 1) -> float:
    """What the work takes, the mean of some times."""
    start = time.perf_counter()
    for _ in range(times):
        work()
    return (time.perf_counter() - start) / times


def write(table: pd.DataFrame | list[dict[str, Any]], out: Path) -> None:
    """The table as CSV, five digits of each number; called again, it takes the place of what was
    there.
    """
    out.parent.mkdir(parents=True, exist_ok=True)
    pd.DataFrame(table).to_csv(out, index=False, float_format="%.5g", lineterminator="\n")


def show(table: pd.DataFrame | list[dict[str, Any]]) -> None:
    """The table on the screen."""
    typer.echo(
        pd.DataFrame(table).to_string(
            index=False, float_format=lambda value: f"{value:,.4g}", na_rep=""
        )
    )
