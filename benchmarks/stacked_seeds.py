"""Whether several seeds of one small model train faster as a batch of models than one by one.

    python benchmarks/stacked_seeds.py

Stacked, every parameter of all seeds is one tensor, and `torch.func.vmap` takes both passes of all
models at once; attention takes plain products there, as its fused kernel knows no batch of models.
One by one, each model takes its own passes, as in a study. Both take turns on the same batches, and
the largest difference of a gradient is beside the times. A study runs as many processes as there
are cores, each with one thread: so that row counts, and with more threads one process has all of
them. The model is the plain transformer (`PLAIN` in common.py), depth 4. Writes
benchmarks/results/stacked_seeds.csv.
"""

from pathlib import Path
from statistics import median
from typing import Annotated, Any

import torch
import typer
from common import RESULTS, pinned, seconds, show, write
from torch import Tensor
from torch.func import functional_call, grad_and_value, stack_module_state, vmap
from torch.nn.attention import SDPBackend, sdpa_kernel

from lmlab.core import registry
from lmlab.model.device import use_device
from lmlab.model.models import base as models
from lmlab.model.models.base import next_token_loss

VOCABULARY = 65


def compared(
    width: int, seeds: int, threads: int, batch: int, context: int, turns: int
) -> dict[str, Any]:
    """A row of the table."""
    use_device("cpu", threads)
    choice = registry.choose(
        pinned({"models.transformer.width": width, "models.transformer.depth": 4}),
        "models",
        "transformer",
    )
    singles = [models.build(choice, VOCABULARY, context).train() for _ in range(seeds)]
    tokens_SBT, targets_SBT = torch.randint(VOCABULARY, (2, seeds, batch, context))
    weights, buffers = stack_module_state(singles)

    def loss_of(
        weights: dict[str, Tensor], buffers: dict[str, Tensor], tokens: Tensor, targets: Tensor
    ) -> Tensor:
        logits = functional_call(singles[0], (weights, buffers), (tokens,))
        return next_token_loss(logits, targets)

    def one_by_one() -> None:
        for model, tokens_BT, targets_BT in zip(singles, tokens_SBT, targets_SBT, strict=True):
            model.zero_grad()
            torch.autograd.backward(next_token_loss(model(tokens_BT), targets_BT))

    def stacked() -> dict[str, Tensor]:
        with sdpa_kernel(SDPBackend.MATH):
            gradients, _ = vmap(grad_and_value(loss_of))(weights, buffers, tokens_SBT, targets_SBT)
        found: dict[str, Tensor] = gradients
        return found

    one_by_one()
    gradients = stacked()
    difference = max(
        float((gradients[name][number] - parameter.grad).detach().abs().max())
        for number, model in enumerate(singles)
        for name, parameter in model.named_parameters()
        if parameter.grad is not None
    )
    times: dict[str, list[float]] = {"one_by_one": [], "stacked": []}
    for _ in range(turns):
        times["one_by_one"].append(seconds(one_by_one))
        times["stacked"].append(seconds(stacked))
    ways = {way: median(found) for way, found in times.items()}
    return {
        "width": width,
        "seeds": seeds,
        "threads": threads,
        "one_by_one_milliseconds": 1000 * ways["one_by_one"],
        "stacked_milliseconds": 1000 * ways["stacked"],
        "times_faster": ways["one_by_one"] / ways["stacked"],
        "largest_difference": difference,
    }


def main(
    width: Annotated[list[int] | None, typer.Option(help="By default 16, 32, 64 and 128.")] = None,
    seeds: Annotated[list[int] | None, typer.Option(help="By default 4 and 8.")] = None,
    threads: Annotated[list[int] | None, typer.Option(help="By default 1 and 2.")] = None,
    batch: Annotated[int, typer.Option(help="Windows of each model.")] = 8,
    context: Annotated[int, typer.Option(help="Tokens in a window.")] = 64,
    turns: Annotated[int, typer.Option(help="That are timed.")] = 15,
    out: Annotated[Path, typer.Option(help="Where to write the table.")] = RESULTS
    / "stacked_seeds.csv",
) -> None:
    """Print and write how much faster seeds are as a batch of models."""
    rows = [
        compared(one_width, count, cores, batch, context, turns)
        for one_width in width or [16, 32, 64, 128]
        for count in seeds or [4, 8]
        for cores in threads or [1, 2]
    ]
    show(rows)
    write(rows, out)


if __name__ == "__main__":
    typer.run(main)
