"""nanoGPT's own model, from a folder with its repository's model.py, trained by its recipe for a
processor.

The recipe is the one in its README: 2000 steps of 12 windows of 64 characters, a learning rate of
0.001 after 100 steps that falls as a cosine to a tenth, no dropout, clipping at 1. The loop here
draws windows at random places and moves the model with the optimizer that the model itself makes.
"""

import importlib.util
import math
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

STEPS, WARMUP, RATE, BATCH, CONTEXT = 2000, 100, 1e-3, 12, 64


def load(folder: Path, **sizes: int) -> Any:
    """Its model in these sizes (n_layer, n_head, n_embd, block_size, vocab_size)."""
    found = importlib.util.spec_from_file_location("nanogpt_model", folder / "model.py")
    if found is None or found.loader is None or not (folder / "model.py").exists():
        raise SystemExit(f"{folder} holds no model.py: clone nanoGPT and name its folder")
    module = importlib.util.module_from_spec(found)
    found.loader.exec_module(module)
    return module.GPT(module.GPTConfig(**sizes, dropout=0.0, bias=False))


def train(folder: Path, text: NDArray[Any], vocabulary_size: int, seed: int) -> tuple[Any, float]:
    """The trained model, and the seconds of its steps."""
    torch.manual_seed(seed)
    model = load(
        folder, n_layer=4, n_head=4, n_embd=128, block_size=CONTEXT, vocab_size=vocabulary_size
    )
    optimizer = model.configure_optimizers(0.1, RATE, (0.9, 0.99), "cpu")
    ids = torch.from_numpy(text.astype(np.int64))
    start = time.perf_counter()
    for step in range(STEPS):
        fallen = 0.5 * (1 + math.cos(math.pi * max(0, step - WARMUP) / (STEPS - WARMUP)))
        for group in optimizer.param_groups:
            group["lr"] = RATE * (
                (step + 1) / (WARMUP + 1) if step < WARMUP else 0.1 + 0.9 * fallen
            )
        rows = torch.stack(
            [ids[at : at + CONTEXT + 1] for at in torch.randint(len(ids) - CONTEXT, (BATCH,))]
        )
        _, loss = model(rows[:, :-1], rows[:, 1:].contiguous())
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
    return model, time.perf_counter() - start


@torch.no_grad()
def nats(model: Any, text: NDArray[Any]) -> float:
    """Nats per token of the whole text, in windows side by side."""
    model.eval()
    ids = torch.from_numpy(text.astype(np.int64))
    total = 0.0
    for start in range(0, len(ids) - 1, CONTEXT):
        window = ids[start : start + CONTEXT + 1]
        _, loss = model(window[None, :-1], window[None, 1:].contiguous())
        total += float(loss) * (len(window) - 1)
    return total / (len(ids) - 1)
