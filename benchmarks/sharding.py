"""Tokenizing and sharding of ever more text: seconds should grow with the text, and peak memory
should not.

    python benchmarks/sharding.py --megabytes 10 --megabytes 100 --megabytes 1000

The text is generated: files of a megabyte, whose words are drawn by Zipf's law from 200,000 made of
random letters. Each of the three stages that see it runs in a process of its own, as in the
pipeline, with workers of its own; memory is the most that any one of these processes held. Scratch
files, about three times the text, go to the system's folder for them. Writes
benchmarks/results/sharding.csv.
"""

import multiprocessing
import os
import resource
import string
import sys
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from contextlib import redirect_stdout
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated, Any

import numpy as np
import typer
from common import RESULTS, seconds, write

from lmlab.core import params, registry
from lmlab.core.params import Tree, changed
from lmlab.data.shards import ShardManifest
from lmlab.experiments.stages.download import download
from lmlab.experiments.stages.layout import Layout
from lmlab.experiments.stages.shard import shard
from lmlab.experiments.stages.tokenizer import tokenizer

WORDS, LONGEST_WORD, WORDS_IN_A_LINE = 200_000, 10, 12


def write_text(megabytes: float, folder: Path) -> None:
    """Files of a megabyte or less."""
    rng = np.random.default_rng(0)
    letters = rng.choice(list(string.ascii_lowercase), (WORDS, LONGEST_WORD))
    words = np.array(
        [
            "".join(row[:length])
            for row, length in zip(letters, rng.integers(2, 11, WORDS), strict=True)
        ]
    )
    shares = 1 / np.arange(1, WORDS + 1)
    folder.mkdir()
    left, number = round(megabytes * 1e6), 0
    while left > 0:
        drawn = rng.choice(words, 150_000, p=shares / shares.sum())
        lines = (
            " ".join(drawn[at : at + WORDS_IN_A_LINE])
            for at in range(0, len(drawn), WORDS_IN_A_LINE)
        )
        text = "\n".join(lines)[: min(left, 1_000_000)]
        (folder / f"{number:05d}.txt").write_text(text)
        left, number = left - len(text), number + 1


def most_bytes() -> int:
    """The most memory that this process or one of its workers has held."""
    most = max(
        resource.getrusage(who).ru_maxrss
        for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)
    )
    return most if sys.platform == "darwin" else most * 1024  # bytes on macOS, kibibytes elsewhere


Stage = Callable[[Tree, Layout], None]


def measured(stage: Stage, tree: Tree, layout: Layout) -> dict[str, float]:
    """What a stage took, in this process."""
    with open(os.devnull, "w") as nowhere, redirect_stdout(nowhere):
        taken = seconds(lambda: stage(tree, layout))
    return {"seconds": taken, "peak_megabytes": most_bytes() / 1e6}


def alone(stage: Stage, tree: Tree, layout: Layout) -> dict[str, float]:
    """What it takes in a process of its own."""
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        return pool.submit(measured, stage, tree, layout).result()


def main(
    megabytes: Annotated[list[float], typer.Option(help="How much text.")],
    name: Annotated[
        list[str] | None, typer.Option("--tokenizer", help="Of params.yaml; all if none is named.")
    ] = None,
    processes: Annotated[int, typer.Option(help="How many work on shards at once.")] = 2,
    duplicates: Annotated[
        str, typer.Option(help="What becomes of them: keep, equal or near; there are none.")
    ] = "keep",
    out: Annotated[Path, typer.Option(help="Where to write the table.")] = RESULTS / "sharding.csv",
) -> None:
    """Print and write what each stage took at each size."""
    rows: list[dict[str, Any]] = []
    for size in megabytes:
        with TemporaryDirectory() as scratch:
            folder = Path(scratch)
            os.environ["DVC_ROOT"] = scratch  # for what the stages keep until they end
            layout = Layout.below(folder)
            write_text(size, folder / "text")
            changes: dict[str, Any] = {
                "download.corpus": "local",
                "corpora.local.files": str(folder / "text" / "*.txt"),
                "download.duplicates": duplicates,
            }
            changes["shard.processes"] = processes
            plain = changed(params.read(), changes)
            downloaded = alone(download, plain, layout)
            for number, chosen in enumerate(name or registry.names("tokenizers")):
                tree = changed(plain, {"tokenizer.name": chosen})
                stages = {"download": downloaded} if number == 0 else {}
                stages |= {
                    "tokenizer": alone(tokenizer, tree, layout),
                    "shard": alone(shard, tree, layout),
                }
                manifest = ShardManifest.read(layout.shards)
                written = sum(split.bytes for split in manifest.splits.values()) / 1e6
                for stage, took in stages.items():
                    row = {
                        "stage": stage,
                        "tokenizer": chosen if stage != "download" else "",
                        "megabytes": written,
                    }
                    rows.append({**row, **took, "megabytes_per_second": written / took["seconds"]})
                    typer.echo(
                        f"{stage:10} {row['tokenizer']:10}{written:10,.1f} MB of text"
                        f"{took['seconds']:10,.1f} s{took['peak_megabytes']:10,.0f} MB held"
                    )
    write(rows, out)


if __name__ == "__main__":
    typer.run(main)
