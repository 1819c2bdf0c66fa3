"""Continues a text by the model in this folder. It needs numpy and onnxruntime alone:

pip install onnxruntime
python generate.py "Once upon a time" --tokens 200 --temperature 0.8
"""

import argparse
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")  # read when it is imported

import numpy as np
import onnxruntime

from lmlab.export.onnx.program.spelling import Byte

FOLDER = Path(__file__).parent


def generate(
    model: dict[str, Any], ids: list[int], count: int, temperature: float, seed: int
) -> Iterator[int]:
    """Yield `count` ids that continue those given.

    Each call of the graph reads the ids that are new, and is handed the states that the last one
    left. Temperature 0 takes the likeliest id each time.
    """
    session = onnxruntime.InferenceSession(FOLDER / "model.onnx")
    states = {state["name"]: empty(state) for state in model["states"]}
    rng = np.random.default_rng(seed)
    ids = ids[-model["context"] :]
    for _ in range(count):
        tokens_BT = np.array([ids], dtype=np.int64)
        logits_BTV, *after = session.run(None, {"tokens": tokens_BT, **states})
        states = dict(zip(states, after))
        ids = [pick(logits_BTV[0, -1], temperature, rng)]
        yield ids[0]


def empty(state: dict[str, Any]) -> Any:
    """A state before the first token, for a batch of one text."""
    sizes = {"batch": 1, "past": 0}
    shape = [sizes.get(size, size) for size in state["shape"]]
    return np.full(shape, state["initial"], dtype=state["dtype"])


def pick(logits_V: Any, temperature: float, rng: np.random.Generator) -> int:
    """An id drawn from softmax(logits / temperature)."""
    if temperature == 0:
        return int(logits_V.argmax())
    weights_V = np.exp((logits_V.astype(np.float64) - logits_V.max()) / temperature)
    return int(rng.choice(len(weights_V), p=weights_V / weights_V.sum()))


def main() -> None:
    """Print the prompt and what the model makes of it, up to the end of a document."""
    parser = argparse.ArgumentParser()
    parser.add_argument("prompt", nargs="?", default="")
    parser.add_argument("--tokens", type=int, default=200, help="at most")
    parser.add_argument("--temperature", type=float, default=0.8, help="0: the likeliest always")
    parser.add_argument("--seed", type=int, default=0)
    asked = parser.parse_args()
    model = json.loads((FOLDER / "model.json").read_text(encoding="utf-8"))
    saved = json.loads((FOLDER / "tokenizer.json").read_text(encoding="utf-8"))
    tokenizer = Byte({**saved, **model})
    prompt = [model["bos"], *tokenizer.encode(asked.prompt)]
    continued = []
    for i in generate(model, prompt, asked.tokens, asked.temperature, asked.seed):
        if i == model["bos"]:
            break
        continued.append(i)
    print(asked.prompt + tokenizer.decode(continued))


if __name__ == "__main__":
    main()
