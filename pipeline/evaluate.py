"""Stage `evaluate`: what the model is worth, on whole splits and beside references."""

from pathlib import Path

from lmlab.core import params as settings
from lmlab.data.shards import open_shards
from lmlab.data.tokenizers import base as tokenizers
from lmlab.evaluation import evaluate as library
from lmlab.evaluation.evaluate import EvaluateParams
from lmlab.evaluation.measures import base as measures
from lmlab.model.device import use_device
from lmlab.model.models import base as models
from pipeline import read_params, run_stage


def evaluate(
    corpus: Path = Path("data/corpus"),
    tokenizer: Path = Path("data/tokenizer"),
    shards: Path = Path("data/shards"),
    model: Path = Path("data/model"),
    log: Path = Path("data/training"),
    results: Path = Path("results"),
) -> None:
    """Score MODEL on the validation split of SHARDS; write RESULTS."""
    params, _ = read_params("evaluate", EvaluateParams)
    fitted = tokenizers.load(tokenizer / "tokenizer.json")
    split = open_shards(shards, tokenizer / "tokenizer.json")
    trained, saved = models.load(model, use_device(params.device, params.threads))
    library.check_model_fits(saved, split)
    chosen = measures.chosen(settings.read(), params.measures)
    library.evaluate(
        params, chosen, trained, saved, split, fitted, corpus, log / "log.jsonl", results
    )


if __name__ == "__main__":
    run_stage(evaluate)
