"""Training steps a second at nanoGPT's shapes, beside a plain loop over torch's own layers, in one
run.

    python benchmarks/throughput.py --shape narrow --shape wide --nanogpt ../nanoGPT

The architecture is that of recipes/yardstick.yaml: four blocks of width 128 on 12 windows of 64
characters, or six of width 384 on 16 of 256. `ours` is a whole step of this project's training
loop: the batch, both passes, clipping, AdamW, the log's numbers; `ours, compiled` the same with
`train.compile`, whose first step is told apart. `torch.nn` is what one writes first:
torch.nn.TransformerEncoderLayer, torch.optim.AdamW, a batch that is there already; `nanoGPT` the
same loop over the model of a clone of its repository, both in float32. They take turns. Operations
are counted by lmlab.sizing; the peak is torch's own product of two matrices of 1024 rows in the
same precision, the best of the turns. Writes benchmarks/results/throughput.csv.
"""

from collections.abc import Callable
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Annotated, Any

import nanogpt
import torch
import typer
from common import RESULTS, prepare, seconds, show, write
from torch import nn

from lmlab.core import params, registry
from lmlab.core.params import Tree, changed
from lmlab.data.batches import Batches
from lmlab.data.shards import Shards
from lmlab.evaluation.probes.cost import peak_bytes
from lmlab.experiments import recipes
from lmlab.model.device import use_device
from lmlab.model.models.base import LanguageModel
from lmlab.training import step as stepping
from lmlab.training.cost import forward_flops, training_flops
from lmlab.training.step import TrainParams

SHAPES = {
    "narrow": {"width": 128, "depth": 4, "heads": 4, "context": 64, "batch": 12},
    "wide": {"width": 384, "depth": 6, "heads": 6, "context": 256, "batch": 16},
}
PEAK_ROWS, PEAK_STEPS = 1024, 20
PLAIN, OURS, COMPILED, FLOAT32 = "torch.nn", "ours", "ours, compiled", "float32"
Step = Callable[[], object]


class Plain(nn.Module):
    """GPT-2 from torch's own layers."""

    def __init__(self, shape: dict[str, int], vocabulary_size: int) -> None:
        super().__init__()
        width, context = shape["width"], shape["context"]
        self.tokens, self.places = (
            nn.Embedding(vocabulary_size, width),
            nn.Embedding(context, width),
        )
        layer = nn.TransformerEncoderLayer(
            width,
            shape["heads"],
            4 * width,
            dropout=0.0,
            activation="gelu",
            batch_first=True,
            norm_first=True,
            bias=False,
        )
        self.blocks = nn.TransformerEncoder(
            layer, shape["depth"], nn.LayerNorm(width, bias=False), enable_nested_tensor=False
        )
        self.readout = nn.Linear(width, vocabulary_size, bias=False)
        self.readout.weight = self.tokens.weight
        self.mask = nn.Transformer.generate_square_subsequent_mask(context)

    def forward(self, tokens: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        """The loss."""
        x = self.tokens(tokens) + self.places.weight[: tokens.shape[1]]
        logits = self.readout(self.blocks(x, mask=self.mask, is_causal=True))
        return nn.functional.cross_entropy(logits.flatten(0, 1), targets.flatten())


def eager(model: nn.Module, loss_of: Callable[[Any], torch.Tensor], batch: torch.Tensor) -> Step:
    """The plain loop: backward, clip, AdamW as torch comes with it."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, betas=(0.9, 0.99), weight_decay=0.1)

    def step() -> None:
        loss = loss_of(model(batch[:, :-1], batch[:, 1:].contiguous()))
        loss.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        loss.item()

    return step


def whole_step(tree: Tree, shards: Shards, threads: int) -> tuple[LanguageModel, Step, Step]:
    """This project's model, a step of its training, and of that the part that gets the batch."""
    train = params.section(tree, "train", TrainParams)
    chosen = registry.choices(tree, "train", train)
    run = stepping.begin(train, chosen, shards.vocabulary_size, use_device("cpu", threads))
    pool_tokens = int(train.pool_megatokens * 1e6)
    batches = Batches(shards, run.params.batch, train.context, train.seed, pool_tokens)
    schedule = chosen["schedule"].build(train.steps)

    def step() -> None:
        stepping.take_step(run, schedule, batches)
        run.step += 1

    return run.model, step, lambda: batches.at(run.step)


def product(dtype: torch.dtype) -> Step:
    """What the processor is best at."""
    square = torch.randn(PEAK_ROWS, PEAK_ROWS).to(dtype)
    return lambda: square @ square


def measure(
    name: str,
    precisions: list[str],
    compiles: bool,
    folder: Path | None,
    turns: int,
    steps: int,
    threads: int,
) -> list[dict[str, Any]]:
    """A row for each contender at one shape."""
    shape = SHAPES[name]
    recipe = changed(params.read(), recipes.read("yardstick"))
    sizes = {f"models.transformer.{key}": shape[key] for key in ("width", "depth")}
    sizes |= {f"train.{key}": shape[key] for key in ("batch", "context")}
    heads = {"layers.attention.multi_head.heads": shape["heads"], "train.threads": threads}
    tree = changed(recipe, {**sizes, **heads})  # type: ignore[dict-item]
    with TemporaryDirectory() as made:
        shards, _ = prepare(tree, Path(made))
        batch = torch.randint(shards.vocabulary_size, (shape["batch"], shape["context"] + 1))
        contenders: dict[tuple[str, str], Step] = {
            (PLAIN, FLOAT32): eager(Plain(shape, shards.vocabulary_size), lambda loss: loss, batch)
        }
        if folder:
            names = {
                "n_layer": "depth",
                "n_head": "heads",
                "n_embd": "width",
                "block_size": "context",
            }
            theirs = nanogpt.load(
                folder,
                vocab_size=shards.vocabulary_size,
                **{key: shape[of] for key, of in names.items()},
            )
            contenders["nanoGPT", FLOAT32] = eager(theirs, lambda found: found[1], batch)
        timed: dict[tuple[str, str], Step] = {("peak", FLOAT32): product(torch.float32)}
        first = {}
        for precision in precisions:
            for what in (OURS, COMPILED)[: 1 + compiles]:
                own = changed(
                    tree, {"train.precision": precision, "train.compile": what == COMPILED}
                )
                model, contenders[what, precision], timed["batch", precision] = whole_step(
                    own, shards, threads
                )
                first[what, precision] = seconds(contenders[what, precision], 1)
            timed["peak", precision] = product(getattr(torch, precision))
        timed |= contenders
        found: dict[tuple[str, str], list[float]] = {key: [] for key in timed}
        for turn in range(1 + turns):
            for key, work in timed.items():
                taken = seconds(work, max(steps, PEAK_STEPS) if key[0] == "peak" else steps)
                if turn:  # the first one warms up
                    found[key].append(taken)
        memory = {key: peak_bytes(work, torch.device("cpu")) for key, work in contenders.items()}
        tokens = shape["batch"] * shape["context"]
        flops = training_flops(forward_flops(model), tokens)
    plain = median(found[PLAIN, FLOAT32])
    rows = []
    for what, precision in contenders:
        taken = median(found[what, precision])
        rows.append(
            {
                "shape": name,
                "what": what,
                "precision": precision,
                "milliseconds": 1000 * taken,
                "tokens_per_second": tokens / taken,
                "times_torch_nn": plain / taken,
                "gigaflops": flops / taken / 1e9,
                "share_of_peak": flops / taken / (2 * PEAK_ROWS**3 / min(found["peak", precision])),
                "share_for_the_batch": median(found["batch", precision]) / taken
                if what in (OURS, COMPILED)
                else None,
                "first_step_seconds": first.get((what, precision)),
                "bytes_per_token": memory[what, precision] / tokens,
            }
        )
    return rows


def main(
    shape: Annotated[list[str], typer.Option(help="narrow, wide or both.")],
    precision: Annotated[
        list[str] | None, typer.Option(help="Of ours: float32, bfloat16 or both; none: float32.")
    ] = None,
    compiled: Annotated[
        bool, typer.Option(help="Ours with torch's compiler too; it needs a C++ compiler.")
    ] = False,
    clone: Annotated[
        Path | None, typer.Option("--nanogpt", help="A folder with nanoGPT's model.py.")
    ] = None,
    turns: Annotated[
        int, typer.Option(help="Turns that are timed; medians of them are shown.")
    ] = 7,
    steps: Annotated[int, typer.Option(help="Steps in a turn.")] = 5,
    threads: Annotated[int, typer.Option(help="Processor cores to use.")] = 2,
    out: Annotated[Path, typer.Option(help="Where to write the table.")] = RESULTS
    / "throughput.csv",
) -> None:
    """Print and write each contender's speed, and what share of the processor's peak that is."""
    rows = [
        row
        for name in shape
        for row in measure(name, precision or [FLOAT32], compiled, clone, turns, steps, threads)
    ]
    write(rows, out)
    show(rows)


if __name__ == "__main__":
    typer.run(main)
