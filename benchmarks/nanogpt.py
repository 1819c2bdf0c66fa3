"""nanoGPT's own model, from a folder with its repository's model.py, trained by its two recipes for
a text in characters.

For a processor, in its README: 2000 steps of 12 windows of 64 characters, a learning rate of 0.001
after 100 steps that falls as a cosine to a tenth, no dropout, clipping at 1. For a GPU, in
config/train_shakespeare_char.py: 5000 steps of 64 windows of 256, a larger model, dropout 0.2,
bfloat16 and torch.compile; the best validation counts. The loop here draws windows at random places
and moves the model with the optimizer that the model itself makes.
"""

import importlib.util
import math
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray


class Recipe(NamedTuple):
    """What of its settings differs."""

    layers: int
    heads: int
    width: int
    context: int
    batch: int
    steps: int
    dropout: float
    compiled: bool
    warmup: int = 100
    rate: float = 1e-3


FOR_A_PROCESSOR = Recipe(4, 4, 128, 64, 12, 2000, 0.0, compiled=False)
FOR_A_GPU = Recipe(6, 6, 384, 256, 64, 5000, 0.2, compiled=True)
STEPS, BATCH, CONTEXT = FOR_A_PROCESSOR.steps, FOR_A_PROCESSOR.batch, FOR_A_PROCESSOR.context


def load(folder: Path, dropout: float = 0.0, **sizes: int) -> Any:
    """Its model in these sizes (n_layer, n_head, n_embd, block_size, vocab_size)."""
    found = importlib.util.spec_from_file_location("nanogpt_model", folder / "model.py")
    if found is None or found.loader is None or not (folder / "model.py").exists():
        raise SystemExit(f"{folder} holds no model.py: clone nanoGPT and name its folder")
    module = importlib.util.module_from_spec(found)
    found.loader.exec_module(module)
    return module.GPT(module.GPTConfig(**sizes, dropout=dropout, bias=False))


def train(folder: Path, text: NDArray[Any], vocabulary_size: int, seed: int) -> tuple[Any, float]:
    """The trained model by the recipe for a processor, and the seconds of its steps."""
    *_, (model, seconds, _) = training(
        folder, FOR_A_PROCESSOR, text, vocabulary_size, seed, torch.device("cpu"), STEPS
    )
    return model, seconds


def training(
    folder: Path,
    recipe: Recipe,
    text: NDArray[Any],
    vocabulary_size: int,
    seed: int,
    device: torch.device,
    every: int,
) -> Iterator[tuple[Any, float, int]]:
    """The model after every so many steps, the seconds of all steps until then, and their number.

    What is done with the model in between is not timed.
    """
    torch.manual_seed(seed)
    model = load(
        folder,
        recipe.dropout,
        n_layer=recipe.layers,
        n_head=recipe.heads,
        n_embd=recipe.width,
        block_size=recipe.context,
        vocab_size=vocabulary_size,
    ).to(device)
    optimizer = model.configure_optimizers(0.1, recipe.rate, (0.9, 0.99), device.type)
    called = torch.compile(model) if recipe.compiled else model
    ids = torch.from_numpy(text.astype(np.int64))
    in_bfloat16 = torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda")
    seconds = 0.0
    start = time.perf_counter()
    for step in range(recipe.steps):
        done = max(0, step - recipe.warmup) / (recipe.steps - recipe.warmup)
        fallen = 0.5 * (1 + math.cos(math.pi * done))
        for group in optimizer.param_groups:
            group["lr"] = recipe.rate * (
                (step + 1) / (recipe.warmup + 1) if step < recipe.warmup else 0.1 + 0.9 * fallen
            )
        places = torch.randint(len(ids) - recipe.context, (recipe.batch,))
        rows = torch.stack([ids[at : at + recipe.context + 1] for at in places])
        if device.type == "cuda":
            rows = rows.pin_memory()
        rows = rows.to(device, non_blocking=True)
        with in_bfloat16:
            _, loss = called(rows[:, :-1], rows[:, 1:].contiguous())
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        if (step + 1) % every == 0 or step + 1 == recipe.steps:
            if device.type == "cuda":
                torch.cuda.synchronize()
            seconds += time.perf_counter() - start
            yield model, seconds, step + 1
            model.train()
            start = time.perf_counter()


@torch.no_grad()
def nats(model: Any, text: NDArray[Any], context: int = CONTEXT) -> float:
    """Nats per token of the whole text, in windows side by side."""
    model.eval()
    ids = torch.from_numpy(text.astype(np.int64)).to(next(model.parameters()).device)
    total = 0.0
    for start in range(0, len(ids) - 1, context):
        window = ids[start : start + context + 1]
        _, loss = model(window[None, :-1], window[None, 1:].contiguous())
        total += float(loss) * (len(window) - 1)
    return total / (len(ids) - 1)
