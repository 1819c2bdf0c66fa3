"""Tokenizing and sharding of ever more text: seconds and peak memory, which should grow with the text and not at all.

    python benchmarks/sharding.py --megabytes 10 --megabytes 100 --megabytes 1000

The text is generated (corpora.grammar, as many documents of 100 kB as it takes). Each of the three stages that see it
runs in a process of its own, as in the pipeline, with workers of its own; memory is the most that any one of these
processes held. Scratch files go to the system's folder for them, about three times the text. Writes
benchmarks/results/sharding.csv.
"""

import json
import multiprocessing
import os
import resource
import sys
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from contextlib import redirect_stdout
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated, Any

import pandas as pd
import typer

from lmlab import collecting, documents, params, parts, sharding
from lmlab.collecting import DownloadParams
from lmlab.experiments.studies import changed
from lmlab.params import Tree
from lmlab.sharding import ShardParams
from lmlab.tokenizers import base as tokenizers
from lmlab.tokenizers.base import TokenizerParams

RESULTS = Path(__file__).parent / "results" / "sharding.csv"
SENTENCES_PER_MEGABYTE = 25_000
"""Of the grammar, near enough: what is reported is the size that came out."""
SENTENCES_PER_DOCUMENT = 2_500


def download(tree: Tree, folder: Path) -> None:
    """The stage `download`."""
    chosen = params.section(tree, "download", DownloadParams)
    collecting.build(chosen, parts.choices(tree, "download", chosen)["corpus"].build(), folder / "corpus")


def tokenizer(tree: Tree, folder: Path) -> None:
    """The stage `tokenizer`."""
    chosen = parts.choices(tree, "tokenizer", params.section(tree, "tokenizer", TokenizerParams))["name"]
    fitted = tokenizers.fit(chosen, (text for _, _, text in documents.read_parts(folder / "corpus" / "train.parquet")))
    tokenizers.save(chosen, fitted, folder / "tokenizer" / "tokenizer.json")


def shard(tree: Tree, folder: Path) -> None:
    """The stage `shard`."""
    chosen = params.section(tree, "shard", ShardParams)
    sharding.build(chosen, folder / "corpus", folder / "tokenizer", folder / "shards")


def most_bytes() -> int:
    """The most memory that this process or one of its workers has held."""
    most = max(resource.getrusage(who).ru_maxrss for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return most if sys.platform == "darwin" else most * 1024  # bytes on macOS, kibibytes elsewhere


def measured(stage: Callable[[Tree, Path], None], tree: Tree, folder: Path) -> dict[str, float]:
    """What a stage took, in this process."""
    start = time.perf_counter()
    with open(os.devnull, "w") as nowhere, redirect_stdout(nowhere):
        stage(tree, folder)
    return {"seconds": time.perf_counter() - start, "peak_megabytes": most_bytes() / 1e6}


def alone(stage: Callable[[Tree, Path], None], tree: Tree, folder: Path) -> dict[str, float]:
    """What it takes in a process of its own."""
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        return pool.submit(measured, stage, tree, folder).result()


def main(
    megabytes: Annotated[list[float], typer.Option(help="How much text.")],
    name: Annotated[list[str] | None, typer.Option("--tokenizer", help="Of params.yaml; all if none is named.")] = None,
    processes: Annotated[int, typer.Option(help="How many work on shards at once.")] = 2,
    out: Annotated[Path, typer.Option(help="Where to write the table.")] = RESULTS,
) -> None:
    """Print and write what each stage took at each size."""
    rows: list[dict[str, Any]] = []
    for size in megabytes:
        count = max(2, round(size * SENTENCES_PER_MEGABYTE / SENTENCES_PER_DOCUMENT))
        text = {"documents": count, "sentences": SENTENCES_PER_DOCUMENT}
        changes: dict[str, Any] = {f"corpora.grammar.{key}": value for key, value in text.items()}
        changes |= {"download.corpus": "grammar", "shard.processes": processes}
        with TemporaryDirectory() as made:
            folder = Path(made)
            plain = changed(params.read(), changes)
            found = alone(download, plain, folder)
            for number, chosen in enumerate(name or parts.names("tokenizers")):
                tree = changed(plain, {"tokenizer.name": chosen})
                stages = {"download": found} if number == 0 else {}
                stages |= {stage.__name__: alone(stage, tree, folder) for stage in (tokenizer, shard)}
                manifest = json.loads((folder / "shards" / "manifest.json").read_text())
                written = sum(split["bytes"] for split in manifest["splits"].values()) / 1e6
                for stage, took in stages.items():
                    row = {"stage": stage, "tokenizer": chosen if stage != "download" else "", "megabytes": written}
                    rows.append({**row, **took, "megabytes_per_second": written / took["seconds"]})
                    typer.echo(
                        ", ".join(
                            f"{key} {value:.4g}" if isinstance(value, float) else str(value)
                            for key, value in rows[-1].items()
                        )
                    )
    out.parent.mkdir(exist_ok=True)
    pd.DataFrame(rows).to_csv(out, index=False, float_format="%.4g", lineterminator="\n")


if __name__ == "__main__":
    typer.run(main)
