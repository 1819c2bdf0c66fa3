"""What one step of each learning rule costs beside plain backprop: time, and peak memory at several
depths, in one run.

    python benchmarks/learning_rules.py

Rule and backprop take turns on the same model and batch, so that a busy machine slows both; figures
are ratios of medians. Memory is the most that is held at once beyond the weights. The model is the
plain transformer (`PLAIN` in common.py); the rules' own options are those in params.yaml. Writes
benchmarks/results/learning_rules.csv.
"""

from pathlib import Path
from statistics import median
from typing import Annotated

import torch
import typer
from common import RESULTS, pinned, write

from lmlab.core import registry
from lmlab.core.errors import UserError
from lmlab.evaluation.probes.cost import peak_bytes, seconds
from lmlab.model.device import use_device
from lmlab.model.models import base as models
from lmlab.model.models.base import next_token_loss

VOCABULARY = 65


def measure(
    name: str, depth: int, width: int, context: int, batch: int, repeats: int
) -> dict[str, float]:
    """Medians for one rule and for backprop: milliseconds and bytes of a call each, at one
    depth.
    """
    sizes = {"models.transformer.depth": depth, "models.transformer.width": width}
    tree = pinned(sizes)
    torch.manual_seed(0)
    model = models.build(
        registry.choose(tree, "models", "transformer"), VOCABULARY, context
    ).train()
    rule = registry.choose(tree, "learning_rules", name).build(model)
    tokens, targets = torch.randint(VOCABULARY, (2, batch, context))

    def backprop() -> None:
        torch.autograd.backward(next_token_loss(model(tokens), targets))

    found: dict[str, list[float]] = {}
    for turn in range(1 + repeats):
        for way, run in (
            ("rule", lambda: rule.assign_gradients(model, tokens, targets)),
            ("backprop", backprop),
        ):
            for what, measured in (("seconds", seconds), ("bytes", peak_bytes)):
                model.zero_grad()
                rule.zero_grad()
                value = measured(run, tokens.device)
                if turn:  # the first one warms up
                    found.setdefault(f"{way}_{what}", []).append(value)
    return {key: median(values) for key, values in found.items()}


def main(
    depth: Annotated[
        list[int] | None, typer.Option(help="Blocks, by default 2, 4 and 8; time is of the first.")
    ] = None,
    width: Annotated[int, typer.Option(help="Of the transformer.")] = 64,
    context: Annotated[int, typer.Option(help="Tokens in a window.")] = 64,
    batch: Annotated[int, typer.Option(help="Windows in a batch.")] = 8,
    repeats: Annotated[int, typer.Option(help="Calls that are timed.")] = 5,
    threads: Annotated[int, typer.Option(help="Processor cores to use.")] = 1,
    out: Annotated[Path, typer.Option(help="Where to write the table.")] = RESULTS
    / "learning_rules.csv",
) -> None:
    """Print and write each rule's time and memory as multiples of backprop's."""
    use_device("cpu", threads)
    depths = depth or [2, 4, 8]
    rows = []
    memory = [f"memory at depth {blocks}" for blocks in depths]
    typer.echo(
        f"{'':28}{'backprop, ms':>14}{'time':>8}  " + "".join(f"{title:>20}" for title in memory)
    )
    for name in registry.names("learning_rules"):
        try:
            found = [measure(name, blocks, width, context, batch, repeats) for blocks in depths]
        except UserError as error:
            typer.echo(f"{name:28}{error}")
            continue
        row: dict[str, float | str] = {
            "rule": name,
            "width": width,
            "context": context,
            "batch": batch,
        }
        row["backprop_milliseconds"] = 1000 * found[0]["backprop_seconds"]
        row["relative_time"] = found[0]["rule_seconds"] / found[0]["backprop_seconds"]
        for blocks, at in zip(depths, found, strict=True):
            row[f"relative_memory_depth_{blocks}"] = at["rule_bytes"] / at["backprop_bytes"]
            row[f"megabytes_depth_{blocks}"] = at["rule_bytes"] / 1e6
        rows.append(row)
        cells = "".join(
            f"{at['rule_bytes'] / at['backprop_bytes']:10.2f} {at['rule_bytes'] / 1e6:6.1f} MB"
            for at in found
        )
        typer.echo(
            f"{name:28}{row['backprop_milliseconds']:14.1f}{row['relative_time']:8.2f}  {cells}"
        )
    write(rows, out)


if __name__ == "__main__":
    typer.run(main)
