"""What a training step costs as one size at a time is doubled, with the order of growth that is
expected beside it.

    python benchmarks/growth.py

Every model is that of the recipe `fast` but for the size named; each size's values take turns, and
medians are shown. The order is the exponent between the two largest values (of seconds, and of the
peak memory of a step beyond the weights): 1 where twice the size costs twice as much. Expected are
the orders of what dominates once a size is large: products of matrices go with the square of the
width and with one power of all else, attention's scores with the square of the context. Small
models are below the order in width, as they wait for memory, and for Python, more than they
compute. A corpus costs time to read, not to train on: of that the batch alone is timed. Writes
benchmarks/results/growth.csv.
"""

from collections.abc import Callable
from itertools import count
from math import log2
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Annotated, Any

import torch
import typer
from common import RESULTS, pinned, prepare, seconds, show, write

from lmlab.core import params, registry
from lmlab.core.params import Tree, changed
from lmlab.data.batches import Batches
from lmlab.evaluation.probes.cost import peak_bytes
from lmlab.experiments import recipes
from lmlab.model.device import use_device
from lmlab.model.models.base import next_token_loss
from lmlab.training import step as stepping
from lmlab.training.step import TrainParams

VOCABULARY = 64
SIZES: dict[str, tuple[str, list[int], float, float]] = {
    "width": ("models.transformer.width", [128, 256, 512], 2, 1),
    "depth": ("models.transformer.depth", [2, 4, 8], 1, 1),
    "context": ("train.context", [128, 512, 1024], 2, 1),
    "batch": ("train.batch", [4, 8, 16], 1, 1),
    "vocabulary_size": ("", [1024, 4096, 16384], 1, 1),
}
"""Of each size: its key, values, and the expected orders of time and of memory."""
FIXED = {
    "models.transformer.width": 128,
    "models.transformer.depth": 4,
    "train.context": 128,
    "train.batch": 8,
}
CORPUS = [20, 200, 2000]
"""Documents of the grammar of about 10 kB."""


def step_of(tree: Tree, vocabulary_size: int) -> Callable[[], None]:
    """A whole step on random ids: both passes and the optimizer's."""
    train = params.section(tree, "train", TrainParams)
    choices = registry.choices(tree, "train", train)
    run = stepping.begin(train, choices, vocabulary_size, torch.device("cpu"))
    tokens, targets = torch.randint(vocabulary_size, (2, run.params.batch, run.params.context))

    def step() -> None:
        torch.autograd.backward(next_token_loss(run.model(tokens), targets))
        run.optimizer.step()
        run.optimizer.zero_grad(set_to_none=True)

    return step


def batch_of(tree: Tree, folder: Path) -> Callable[[], object]:
    """Only the reading of a batch, at ever other steps."""
    shards, _ = prepare(tree, folder)
    train = params.section(tree, "train", TrainParams)
    batches = Batches(shards, train.batch, train.context, 0, int(train.pool_megatokens * 1e6))
    steps = count()
    return lambda: batches.at(next(steps))


def rows_of(
    size: str,
    values: list[int],
    works: list[Callable[[], object]],
    expected: tuple[float, float],
    turns: int,
) -> list[dict[str, Any]]:
    """Each value's medians, and the order of growth between the last two."""
    found: list[list[float]] = [[] for _ in works]
    for turn in range(1 + turns):
        for work, times in zip(works, found, strict=True):
            taken = seconds(work)
            if turn:  # the first one warms up
                times.append(taken)
    took, memory = (
        [median(times) for times in found],
        [peak_bytes(work, torch.device("cpu")) for work in works],
    )
    rows = []
    for number, value in enumerate(values):
        row = {
            "size": size,
            "value": value,
            "milliseconds": 1000 * took[number],
            "megabytes": memory[number] / 1e6,
        }
        if number == len(values) - 1:
            doublings = log2(values[-1] / values[-2])
            row |= {
                "order": log2(took[-1] / took[-2]) / doublings,
                "expected": expected[0],
                "memory_order": log2(max(1.0, memory[-1]) / max(1.0, memory[-2])) / doublings,
                "memory_expected": expected[1],
            }
        rows.append(row)
    return rows


def main(
    turns: Annotated[int, typer.Option(help="Steps of each that are timed.")] = 7,
    values_of_each: Annotated[
        int, typer.Option(help="How many values of each size, from the smallest.")
    ] = 3,
    threads: Annotated[int, typer.Option(help="Processor cores to use.")] = 1,
    out: Annotated[Path, typer.Option(help="Where to write the table.")] = RESULTS / "growth.csv",
) -> None:
    """Print and write milliseconds of a step, megabytes it needs, and how both grow."""
    use_device("cpu", threads)
    base = pinned({**recipes.read("fast"), **FIXED})
    rows: list[dict[str, Any]] = []
    for size, (key, every, *expected) in SIZES.items():
        values = every[:values_of_each]
        works = [
            step_of(changed(base, {key: value}), VOCABULARY) if key else step_of(base, value)
            for value in values
        ]
        rows += rows_of(size, values, works, (expected[0], expected[1]), turns)
    with TemporaryDirectory() as made:
        works = []
        for documents in CORPUS[:values_of_each]:
            text = {
                "download.corpus": "grammar",
                "corpora.grammar.documents": documents,
                "corpora.grammar.sentences": 250,
            }
            works.append(batch_of(changed(base, text), Path(made) / str(documents)))
        rows += rows_of("corpus", CORPUS[:values_of_each], works, (0, 0), 50 * turns)
    write(rows, out)
    show(rows)


if __name__ == "__main__":
    typer.run(main)
