"""What benchmarks share: the way from a corpus to shards, a clock, and the table that each prints
and writes.
"""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import typer

from lmlab.core import params
from lmlab.core.params import Tree, Values, changed
from lmlab.data.shards import Shards, open_shards
from lmlab.data.tokenizers import base as tokenizers
from lmlab.data.tokenizers.base import Tokenizer
from lmlab.experiments.stages.download import download
from lmlab.experiments.stages.layout import Layout
from lmlab.experiments.stages.shard import shard
from lmlab.experiments.stages.tokenizer import tokenizer

FOLDER = Path(__file__).parent
RESULTS = FOLDER / "results"
PLAIN: Values = {
    "models.transformer.embedding": "token",
    "models.transformer.position": "rotary",
    "models.transformer.attention": "multi_head",
    "models.transformer.feed_forward": "relu_squared",
    "models.transformer.normalisation": "rms_norm",
    "models.transformer.placement": "pre",
    "models.transformer.residual": "plain",
    "models.transformer.dropout": 0.0,
    "models.transformer.logit_soft_cap": 0.0,
    "models.transformer.tied": False,
    "layers.attention.multi_head.heads": 0,
    "layers.attention.multi_head.qk_norm": True,
    "layers.feed_forward.relu_squared.expansion": 4.0,
}
"""The plain transformer. A benchmark carries its own settings, so that its command gives the same
table whatever params.yaml's defaults have become since.
"""


def pinned(settings: Values) -> Tree:
    """params.yaml with a benchmark's settings, on top of the plain transformer's."""
    return changed(params.read(), {**PLAIN, **settings})


def prepare(tree: Tree, folder: Path) -> tuple[Shards, Tokenizer]:
    """The stages from the corpus to shards, in a folder; what they leave, opened."""
    layout = Layout.below(folder)
    download(tree, layout)
    tokenizer(tree, layout)
    shard(tree, layout)
    shards = open_shards(layout.shards, layout.tokenizer_file)
    return shards, tokenizers.load(layout.tokenizer_file)


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
