"""Tokens a second when writing text, with a KV cache and without one, in one run.

    python benchmarks/generation.py --batch 1 --batch 32 --tokens 2000

The model is that of the recipe `fast` as training would begin with it, its ids random: what is
timed does not depend on what was learned. `remembering` is this project's own generation
(lmlab.model.generation); `recomputing` reads the last tokens again for each new one, as many as the
model's context. Recomputing is timed over fewer tokens, of full length, where it would take
minutes. `first_milliseconds` is from a prompt of half a context to the first token. Writes
benchmarks/results/generation.csv.
"""

from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from common import RESULTS, pinned, seconds, show, write

from lmlab.core import registry
from lmlab.experiments import recipes
from lmlab.model import generation
from lmlab.model.device import use_device
from lmlab.model.models import base as models
from lmlab.model.models.base import LanguageModel

VOCABULARY = 65


def remembering(model: LanguageModel, batch: int, tokens: int) -> float:
    """Tokens a second, all rows together."""
    if batch == 1:
        return tokens / seconds(
            lambda: list(generation.sample_ids(model, [0], tokens, 1.0, seed=0))
        )
    return (
        batch
        * tokens
        / seconds(lambda: generation.sample_rows(model, batch, 0, tokens, 1.0, seed=0))
    )


@torch.no_grad()
def recomputing(model: LanguageModel, batch: int, tokens: int, timed: int) -> float:
    """The same without a cache: the tokens up to the context's length as they are, then `timed`
    that stand for the rest.
    """
    seen = torch.zeros(batch, 1, dtype=torch.long)
    rng = torch.Generator().manual_seed(0)

    def add() -> None:
        nonlocal seen
        logits = model(seen[:, -model.context :])[:, -1].double()
        seen = torch.cat((seen, torch.multinomial(logits.softmax(-1), 1, generator=rng)), dim=1)

    short = min(tokens, model.context)
    growing = short * seconds(add, short)
    rest = min(timed, tokens - short)
    full = seconds(add, rest) if rest else 0.0
    return batch * tokens / (growing + full * (tokens - short))


def first(model: LanguageModel) -> float:
    """Seconds from a prompt to its first token."""
    return seconds(
        lambda: next(generation.sample_ids(model, [0] * (model.context // 2), 1, 1.0, seed=0))
    )


def main(
    batch: Annotated[list[int], typer.Option(help="Texts that are written at once.")],
    tokens: Annotated[int, typer.Option(help="Length of each.")] = 2000,
    timed: Annotated[
        int, typer.Option(help="Tokens of full length that are timed when recomputing.")
    ] = 100,
    model: Annotated[
        str, typer.Option(help="A model, with its options in params.yaml.")
    ] = "transformer",
    threads: Annotated[int, typer.Option(help="Processor cores to use.")] = 1,
    out: Annotated[Path, typer.Option(help="Where to write the table.")] = RESULTS
    / "generation.csv",
) -> None:
    """Print and write tokens a second, and how many times faster the cache makes it."""
    use_device("cpu", threads)
    tree = pinned({**recipes.read("fast"), "train.model": model})
    torch.manual_seed(0)
    made = models.build(
        registry.choose(tree, "models", model), VOCABULARY, tree["train"]["context"]
    ).eval()
    first(made)  # the first call warms up
    latency = sorted(first(made) for _ in range(9))[4]
    rows: list[dict[str, Any]] = []
    for rows_at_once in batch:
        fast = remembering(made, rows_at_once, tokens)
        slow = recomputing(made, rows_at_once, tokens, timed)
        row = {"model": model, "context": made.context, "batch": rows_at_once, "tokens": tokens}
        speeds = {"remembering": fast, "recomputing": slow, "ratio": fast / slow}
        rows.append({**row, **speeds, "first_milliseconds": 1000 * latency})
    write(rows, out)
    show(rows)


if __name__ == "__main__":
    typer.run(main)
