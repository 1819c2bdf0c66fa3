"""How long recipes train until they predict a text as well as they do, beside a yardstick, on one
text in one run.

    python benchmarks/time_to_quality.py --target 1.9053 --recipe yardstick --recipe sprint

A recipe is one of recipes/, or `default`, which is params.yaml as it is. Of the text the last tenth
is validation and never trained on. Seconds are those in training steps, from the first to the last:
neither validation nor setting up counts. A recipe's schedule ends with its last step, and so its
loss is read there: over all of validation, in windows side by side (as while training), and in
windows that overlap by half. Recipes take turns, seed by seed, so that a busy machine slows all.
With `--nanogpt` its own model and recipe run too, from a clone of its repository. `mixed_nats` are
those of half the model and half a Kneser-Ney n-gram, counted on the text that was trained on; the
n-gram's own row has the seconds that counting takes. Each of several corpora (`--corpus`) is a race
of its own; with several precisions every recipe runs in each. Writes
benchmarks/results/time_to_quality.csv, or what `--out` says.
"""

import time
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated, Any

import nanogpt
import numpy as np
import pandas as pd
import typer
from common import RESULTS, prepare, show, write
from numpy.typing import NDArray

from lmlab.core import params, registry
from lmlab.core.params import Tree, changed
from lmlab.data.shards import Shards
from lmlab.data.tokenizers.base import Tokenizer
from lmlab.evaluation.kneser_ney import KneserNey
from lmlab.evaluation.measures.n_gram_mixture import half_of_each
from lmlab.experiments import preflight, recipes
from lmlab.model.device import use_device
from lmlab.model.models import base as models
from lmlab.model.scoring import score
from lmlab.training import loop as training
from lmlab.training.results import RunFolders
from lmlab.training.step import TrainParams

DEFAULT, YARDSTICK, NANOGPT = "default", "yardstick", "nanoGPT"
NGRAM_ORDER = 7
ALWAYS = {
    "train.validate_every": 0,
    "train.sample_every": 0,
    "train.snapshots": 0,
    "train.checkpoint_seconds": 3600.0,
}
"""Nothing but training between the first step and the last."""


def run(
    tree: Tree, shards: Shards, tokenizer: Tokenizer, counted: NDArray[np.float64]
) -> dict[str, Any]:
    """Train once; seconds, and nats per token on validation, where the n-gram pays `counted` for
    each.
    """
    train = params.section(tree, "train", TrainParams)
    with TemporaryDirectory() as made:
        folder = Path(made)
        timing = training.train(
            train,
            registry.choices(tree, "train", train),
            shards,
            tokenizer,
            RunFolders(folder / "model", folder / "log"),
        )
        model, saved = models.load(folder / "model", use_device(train.device, train.threads))
    stream, window = shards.stream("validation"), model.context
    aside = score(model, stream, shards.bos, window, window)
    charged = ~np.isnan(aside.nats_by_target)
    return {
        "precision": saved.precision,
        "seconds": timing.training_seconds,
        "nats": aside.nats_per_token,
        "overlapping_nats": score(model, stream, shards.bos, window, window // 2).nats_per_token,
        "mixed_nats": float(half_of_each(aside.nats_by_target[charged], counted[charged]).mean()),
        "tokens_per_second": timing.tokens_per_second,
        "tokens": saved.tokens,
        "parameters": saved.parameters,
    }


def count(shards: Shards) -> tuple[dict[str, Any], NDArray[np.float64]]:
    """The n-gram that a model has to be held against, and what it pays for each token of
    validation.
    """
    text = shards.stream("train")
    start = time.perf_counter()
    ngram = KneserNey(text, shards.vocabulary_size, NGRAM_ORDER)
    taken = time.perf_counter() - start
    stream = shards.stream("validation")
    nats = ngram.nats(stream)[1:]
    mean = float(nats[stream[1:] != shards.bos].mean())
    return {
        "recipe": f"Kneser-Ney {NGRAM_ORDER}-gram",
        "seconds": taken,
        "nats": mean,
        "tokens": len(text),
    }, nats


def reference(folder: Path, shards: Shards, seed: int) -> dict[str, Any]:
    """The same for nanoGPT's own recipe."""
    model, seconds = nanogpt.train(folder, shards.stream("train"), shards.vocabulary_size, seed)
    tokens = nanogpt.STEPS * nanogpt.BATCH * nanogpt.CONTEXT
    speed = {
        "tokens_per_second": tokens / seconds,
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
    }
    return {
        "seconds": seconds,
        "nats": nanogpt.nats(model, shards.stream("validation")),
        "tokens": tokens,
        **speed,
    }


def main(
    recipe: Annotated[
        list[str], typer.Option(help="Of recipes/ (`lmlab recipe` lists them), or default.")
    ],
    text: Annotated[Path | None, typer.Option(help="A text file; without one, a corpus.")] = None,
    corpus: Annotated[
        list[str] | None, typer.Option(help="Of params.yaml; without one, what is chosen there.")
    ] = None,
    target: Annotated[
        float, typer.Option(help="Nats per token that should be reached; 0: none.")
    ] = 0.0,
    seeds: Annotated[int, typer.Option(help="Runs of each recipe.")] = 3,
    precision: Annotated[
        list[str] | None, typer.Option(help="To run each recipe in; without one, its own.")
    ] = None,
    clone: Annotated[
        Path | None, typer.Option("--nanogpt", help="A folder with nanoGPT's model.py.")
    ] = None,
    threads: Annotated[int, typer.Option(help="Processor cores to use.")] = 2,
    out: Annotated[Path, typer.Option(help="Where to write the table.")] = RESULTS
    / "time_to_quality.csv",
) -> None:
    """Print and write each recipe's seconds and losses, and its seconds as a share of the
    yardstick's.
    """
    always = {
        **ALWAYS,
        "train.threads": threads,
        "download.split": "tail",
        "download.validation": 0.1,
        "download.test": 0.0,
    }
    sources: list[Tree] = [{"download.corpus": name} for name in corpus or []]
    if text:
        sources.append({"download.corpus": "local", "corpora.local.files": str(text)})
    tables: list[pd.DataFrame] = []
    for source in sources or [{}]:
        base = changed(params.read(), {**always, **source})
        label = {"corpus": source["download.corpus"]} if corpus else {}
        rows: list[dict[str, Any]] = []
        for row in race(base, recipe, precision or [], seeds, clone):
            rows.append({**label, **row})
            write(
                pd.concat([*tables, compared(rows, target)]), out
            )  # at once, so that a run that is stopped leaves it
        tables.append(compared(rows, target))
    show(pd.concat(tables))


def race(
    base: Tree, names: list[str], precisions: list[str], seeds: int, clone: Path | None
) -> Iterator[dict[str, Any]]:
    """A row for the n-gram, then one for each run on the same text."""
    trees: dict[tuple[str, str], Tree] = {}
    for name in names:
        tree = base if name == DEFAULT else changed(base, recipes.read(name))
        for kind in precisions or [params.block(tree, "train")["precision"]]:
            trees[name, kind] = changed(tree, {"train.precision": kind})
    for tree in trees.values():
        preflight.check(tree)
    with TemporaryDirectory() as made:
        shards, tokenizer = prepare(base, Path(made))
        row, counted = count(shards)
        yield row
        for seed in range(seeds):
            for (name, kind), tree in trees.items():
                seeded = changed(tree, {"train.seed": seed, "train.data_seed": seed})
                yield {
                    "recipe": name,
                    "precision": kind,
                    "seed": seed,
                    **run(seeded, shards, tokenizer, counted),
                }
            if clone:
                yield {"recipe": NANOGPT, "seed": seed, **reference(clone, shards, seed)}


def compared(rows: list[dict[str, Any]], target: float) -> pd.DataFrame:
    """What is known so far, each row beside the yardstick's, which counts in float32 where it ran
    in that too.
    """
    table = pd.DataFrame(rows)
    for name, column in ((YARDSTICK, "times_faster"), (NANOGPT, "times_nanogpt")):
        theirs = table[table["recipe"] == name]
        plain = theirs[theirs["precision"] != "bfloat16"] if "precision" in theirs else theirs
        if len(theirs):
            table[column] = (plain if len(plain) else theirs)["seconds"].mean() / table["seconds"]
    if target:
        table["reached"] = table["nats"] <= target
    return table


if __name__ == "__main__":
    typer.run(main)
