"""What `evaluate` writes: the measures of a trained model beside references, small text files that Git keeps."""

import json
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd
from pydantic import Field

from lmlab import generation
from lmlab.errors import UserError
from lmlab.evaluation import character_classes, references
from lmlab.evaluation.scoring import Score, bits_per_byte, remark_on_zero, score
from lmlab.files import checked, read_json, whole_file, write_json, write_sums
from lmlab.measures.base import Trained, take
from lmlab.models.base import LanguageModel
from lmlab.params import Names, Params
from lmlab.parts import Choice
from lmlab.shards import Shards
from lmlab.sizing import training_operations
from lmlab.tokenizers.base import Tokenizer

MOST_CURVE_ROWS = 1000
BITS = {"float32": 32, "bfloat16": 16}


class EvaluateParams(Params):
    """The section `evaluate`."""

    stride: int = Field(ge=1)
    measures: Names
    ngram_order: int = Field(ge=1, le=12)
    ngram_megatokens: float = Field(gt=0)
    prompts: list[str]
    sample_tokens: int = Field(ge=0)
    temperature: float = Field(ge=0)
    seed: int = Field(ge=0)
    device: Literal["cpu", "cuda", "mps"]
    threads: int = Field(ge=1, le=4096)


def evaluate(
    params: EvaluateParams,
    measures: dict[str, Choice],
    model: LanguageModel,
    saved: dict[str, Any],
    shards: Shards,
    tokenizer: Tokenizer,
    corpus: Path,
    log: Path,
    folder: Path,
) -> dict[str, Any]:
    """Score the validation and test splits, fit the references, take the measures, draw samples; write all, return metrics.

    `corpus` is the folder of documents that the shards were made from, `log` the training's log.
    """
    manifest, rows = read_json(corpus / "manifest.json", made_by="download"), _read_log(log)
    splits = [split for split in ("validation", "test") if shards.count(split, "tokens")]
    metrics: dict[str, Any] = {}
    scores: dict[str, Score] = {}
    for split in splits:
        scored = score(model, shards.stream(split), shards.document, model.context, params.stride, f"evaluate: {split}")
        scores[split] = scored
        metrics[split] = _measures(scored, shards.count(split, "bytes"))
        if remark := _remark(shards, split, metrics[split]["bits_per_byte"]):
            print(f"evaluate: {split}: {remark}", flush=True)
    metrics["references"] = _references(params, shards, splits)
    if "entropy_bits_per_byte" in manifest:
        metrics["references"]["source_entropy"] = manifest["entropy_bits_per_byte"]
    metrics |= {"window": model.context, "stride": params.stride, "parameters": saved["parameters"]}
    metrics |= {"tokens_seen": saved["tokens"], "training_bits": BITS[saved["precision"]]}
    trained = Trained(model, saved, shards, tokenizer, corpus, manifest, rows, scores, params.stride)
    taken, left_out = take(measures, trained)
    for line in left_out:
        print(f"evaluate: left out {line}", flush=True)
    metrics |= {**taken, "left_out": left_out}
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / "metrics.json", metrics)
    _write_curves(rows, saved["size"]["forward_operations_per_token"], folder)
    _write_csv(folder / "loss_by_position.csv", _by_position(scores))
    _write_csv(folder / "calibration.csv", _calibration(scores["validation"]))
    by_class = character_classes.table(scores["validation"], shards.stream("validation"), tokenizer.token_bytes)
    _write_csv(folder / "character_classes.csv", by_class)
    with whole_file(folder / "samples.md") as partial:
        partial.write_text(_samples(params, model, tokenizer), encoding="utf-8")
    write_sums(folder, [path.name for path in folder.iterdir() if path.suffix in (".json", ".csv", ".md")])
    return metrics


def check_model_fits(saved: dict[str, Any], shards: Shards) -> None:
    """Raise UserError when a model was trained with another tokenizer than the shards were made with."""
    if saved.get("tokenizer_sha256") != shards.manifest["tokenizer_sha256"] or saved["vocabulary"] != shards.vocabulary:
        raise UserError(
            "data/model was trained with another tokenizer than data/shards was made with; run `dvc repro train`"
        )


def _measures(scored: Score, size: int) -> dict[str, float]:
    with np.errstate(over="ignore"):  # what a learning rate far too high has made is infinitely perplexed
        perplexity = float(np.exp(scored.nats_per_token))
    return {
        "bits_per_byte": bits_per_byte(scored.nats, size),
        "nats_per_token": scored.nats_per_token,
        "perplexity": perplexity,
        "accuracy": scored.accuracy,
        "calibration_error": scored.calibration_error,
        "tokens": scored.tokens,
        "bytes": size,
    }


def _remark(shards: Shards, split: str, bits: float) -> str:
    """What has to be said about a loss that tells nothing of the model; empty where it may tell something."""
    ids = np.unique(shards.stream(split))
    if (ids != shards.document).sum() == 1:
        return "this split is one token again and again, so a loss on it is no measure of learning"
    zero = remark_on_zero(bits)
    return f"{bits:.4f} bits/byte{zero}" if zero else ""


def _references(params: EvaluateParams, shards: Shards, splits: list[str]) -> dict[str, Any]:
    """Bits per byte of each reference on each split; fitted to the whole train split or its first `ngram_megatokens`."""
    train = shards.stream("train")[: max(1, int(params.ngram_megatokens * 1e6))]
    ngram = references.NGram(train, shards.document, shards.vocabulary, params.ngram_order)
    answers: dict[str, Any] = {}
    for split in splits:
        stream, size = shards.stream(split), shards.count(split, "bytes")
        nats = {
            "uniform": references.uniform(stream, shards.document, shards.vocabulary),
            "unigram": references.unigram(train, stream, shards.document, shards.vocabulary),
            "kneser_ney": ngram.nats(stream),
        }
        answers[split] = {name: bits_per_byte(value, size) for name, value in nats.items()}
    return {**answers, "kneser_ney_order": params.ngram_order, "train_tokens": len(train)}


def _read_log(log: Path) -> list[dict[str, Any]]:
    text = checked(log, made_by="train").read_text(encoding="utf-8")
    return [json.loads(line) for line in text.splitlines()]


def _write_curves(rows: list[dict[str, Any]], forward: float, folder: Path) -> None:
    """The training log as two tables that plots can be drawn from, thinned to at most MOST_CURVE_ROWS rows.

    Beside the tokens of each line stand the operations that learning from them takes by backpropagation.
    """
    for name, marker in (("training", "train_nats"), ("validation", "validation_nats")):
        spent = [{**row, "operations": training_operations(forward, row["tokens"])} for row in rows if marker in row]
        kept = [{**{key: row[key] for key in ("step", "tokens", "operations")}, **row} for row in spent]
        every = -(-len(kept) // MOST_CURVE_ROWS) or 1
        _write_csv(folder / f"{name}.csv", pd.DataFrame(kept[::-1][::every][::-1]))


def _by_position(scores: dict[str, Score]) -> pd.DataFrame:
    """Mean loss at each position of the window, 1 being the first, one column a split."""
    with np.errstate(invalid="ignore"):
        columns = {f"{split}_nats": pd.Series(scored.nats_at / scored.tokens_at) for split, scored in scores.items()}
    table = pd.DataFrame(columns)
    table.insert(0, "position", table.index + 1)
    return table.dropna()


def _calibration(scored: Score) -> pd.DataFrame:
    """For each bin of confidence that was used: how sure the model was on average, and how often it was right."""
    used = scored.calls > 0
    calls = scored.calls[used]
    shares = {"confidence": scored.confidence[used] / calls, "accuracy": scored.right[used] / calls, "predictions": calls}
    return pd.DataFrame(shares)


def _write_csv(path: Path, table: pd.DataFrame) -> None:
    with whole_file(path) as partial:
        table.to_csv(partial, index=False, lineterminator="\n")


def _samples(params: EvaluateParams, model: LanguageModel, tokenizer: Tokenizer) -> str:
    """A page of generated text, one block for each prompt."""
    page = [f"# Samples\n\nTemperature {params.temperature}, seed {params.seed}, {params.sample_tokens} tokens each.\n"]
    for prompt in params.prompts:
        text = generation.sample_text(model, tokenizer, prompt, params.sample_tokens, params.temperature, params.seed)
        title = f"After `{prompt}`" if prompt else "From nothing"
        fence = "~~~~~~"
        page.append(f"## {title}\n\n{fence}text\n{prompt}{''.join(text).rstrip()}\n{fence}\n")
    return "\n".join(page)
