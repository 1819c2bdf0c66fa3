"""Stage `train`: a model learns from the train split's shards."""

from pathlib import Path
from typing import Any

from lmlab.data.shards import open_shards
from lmlab.data.tokenizers import base as tokenizers
from lmlab.training import loop as training
from lmlab.training.step import TrainParams
from pipeline import read_params, run_stage


def train(
    shards: Path = Path("data/shards"),
    tokenizer: Path = Path("data/tokenizer"),
    model: Path = Path("data/model"),
    log: Path = Path("data/training"),
    snapshots: Path = Path("data/snapshots"),
) -> dict[str, Any]:
    """Train on SHARDS; write the weights to MODEL, the training's log to LOG, what probes look at
    to SNAPSHOTS.
    """
    params, parts = read_params("train", TrainParams)
    fitted = tokenizers.load(tokenizer / "tokenizer.json")
    opened = open_shards(shards, tokenizer / "tokenizer.json")
    folders = training.RunFolders(model, log, snapshots)
    return training.train(params, parts, opened, fitted, folders).model_dump()


if __name__ == "__main__":
    run_stage(train)
