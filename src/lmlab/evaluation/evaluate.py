"""What `evaluate` writes: the measures of a trained model beside references, small text files that
Git keeps.

Runs are judged by the validation split. The test split stays sealed: `lmlab final` opens it, and
counts.
"""

import json
import math
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd
import torch
from pydantic import Field

from lmlab.core.errors import UserError
from lmlab.core.files import checked, read_json, whole_file, write_json, write_sums
from lmlab.core.params import Names, Params
from lmlab.core.registry import Choice
from lmlab.data.shards import Shards
from lmlab.data.tokenizers.base import Ids, Tokenizer
from lmlab.evaluation import blocks, character_classes, coloured, references
from lmlab.evaluation.heldout import HeldOut, dumps
from lmlab.evaluation.measures.base import Trained, about, take
from lmlab.model import generation
from lmlab.model.models.base import LanguageModel
from lmlab.model.scoring import Score, bits_per_byte, remark_on_zero, score
from lmlab.training.cost import training_flops
from lmlab.training.status import DIVERGED, FINISHED, how_it_diverged

MOST_CURVE_ROWS = 1000
BITS = {"float32": 32, "bfloat16": 16}
HEADLINES = (
    "parameters",
    "tokens_seen",
    "validation.bits_per_byte",
    "validation.accuracy",
    "validation.calibration_error",
    "learning_curve.mean",
    "prequential.bits_per_byte",
    "generalisation_gap.gap.bits_per_byte",
    "context_gain.nats",
    "induction.score",
    "minimal_pairs.mean",
    "entropy_gap.validation",
)
"""Of all numbers those that people compare, in the order in which `dvc exp show` has its columns;
each where a run has it.

The names are those of measures.json, which `lmlab compare` knows them by too.
"""
SCORED = "validation"
"""The split that every run is scored on."""
TABLES = {
    "training": ("step", "tokens", "flops", "train_nats", "learning_rate", "gradient_norm"),
    "validation": ("step", "tokens", "flops", "validation_nats", "validation_bits_per_byte"),
    "loss_by_position": ("position", "validation_nats"),
    "calibration": ("confidence", "accuracy", "predictions"),
    "character_classes": (
        "class",
        "tokens",
        "bytes",
        "nats",
        "nats_per_byte",
        "share_of_bytes",
        "share_of_nats",
    ),
    "validation_blocks": blocks.COLUMNS,
}
"""Columns that each CSV file has, whether a run has something to put there or not."""


class ScoreParams(Params):
    """What decides the scores of a split and of the references beside it."""

    stride: int = Field(ge=1)
    ngram_order: int = Field(ge=1, le=12)
    ngram_megatokens: float = Field(ge=1e-6)
    device: Literal["cpu", "cuda", "mps"]
    threads: int = Field(ge=1, le=4096)


class EvaluateParams(ScoreParams):
    """The section `evaluate`."""

    measures: Names
    prompts: list[str]
    sample_tokens: int = Field(ge=0)
    temperature: float = Field(ge=0)
    seed: int = Field(ge=0)


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
    """Measure a run on the validation split and write all of it into `folder`; return what
    measures.json holds.

    `saved` is the model's model.json, `corpus` the folder of documents that the shards were made
    from, `log` the training's log. Of a run that diverged nothing is scored: its status is told,
    and the curves go as far as its log.
    """
    rows = _read_log(log)
    scored, diverged = _scored(params, model, saved, shards)
    manifest = read_json(corpus / "manifest.json", made_by="download")
    facts = _facts(params, model, saved, diverged) | {"text": _text(manifest)}
    folder.mkdir(parents=True, exist_ok=True)
    if scored is None:
        found, tables, page = facts, {}, _no_samples(diverged)
        heldout = HeldOut(split=SCORED, pieces=())
    else:
        trained = Trained(
            model, saved, shards, tokenizer, corpus, manifest, rows, {SCORED: scored}, params.stride
        )
        found = {**facts, **_numbers(params, measures, trained)}
        tables, page = _tables(trained), _samples(params, model, tokenizer)
        stream = shards.stream(SCORED)
        heldout = coloured.held_out(model, stream, scored, tokenizer, params.stride, SCORED)
    write_json(folder / "metrics.json", headlines(found))
    write_json(folder / "measures.json", found)
    tables |= _curves(rows, saved["size"]["forward_flops_per_token"])
    for name, columns in TABLES.items():
        table = tables.get(name, pd.DataFrame(columns=list(columns)))
        lacking = [
            column for column in columns if column not in table
        ]  # plots ask for them by name
        _write_csv(folder / f"{name}.csv", table.assign(**dict.fromkeys(lacking, math.nan)))
    with whole_file(folder / "samples.md") as partial:
        partial.write_text(page, encoding="utf-8")
    with whole_file(folder / "heldout.json") as partial:
        partial.write_text(dumps(heldout), encoding="utf-8")
    written = ["metrics.json", "measures.json", "samples.md", "heldout.json"]
    write_sums(folder, [*written, *(f"{name}.csv" for name in TABLES)])
    return found


def _scored(
    params: ScoreParams, model: LanguageModel, saved: dict[str, Any], shards: Shards
) -> tuple[Score | None, dict[str, Any]]:
    """The score of the validation split and {}; or None, and the step and the reason, of a run that
    diverged.
    """
    if how_it_diverged(saved):
        return None, saved["diverged"]
    try:
        scored = score_split(params, model, shards, SCORED)
    except FloatingPointError as error:
        return None, {"step": saved["steps"], "reason": str(error)}
    if not math.isfinite(scored.nats):
        return None, {"step": saved["steps"], "reason": f"the loss on {SCORED} is {scored.nats}"}
    if said := remark(shards, SCORED, bits_per_byte(scored.nats, shards.count(SCORED, "bytes"))):
        print(f"evaluate: {SCORED}: {said}", flush=True)
    return scored, {}


def _facts(
    params: ScoreParams, model: LanguageModel, saved: dict[str, Any], diverged: dict[str, Any]
) -> dict[str, Any]:
    """What is known of a run before anything is measured, first of all how it ended."""
    return {
        **({"status": DIVERGED, "diverged": diverged} if diverged else {"status": FINISHED}),
        "window": model.context,
        "stride": params.stride,
        "parameters": saved["parameters"],
        "tokens_seen": saved["tokens"],
        "training_bits": BITS[saved["precision"]],
        "weights_sha256": saved.get("weights_sha256", ""),
        "environment": {"torch": torch.__version__},
    }


def _text(manifest: dict[str, Any]) -> dict[str, str]:
    """What was scored, so that results can tell by themselves whether they are of the same text."""
    of_split = manifest.get("splits", {}).get(SCORED, {})
    return {
        "corpus": manifest.get("corpus", ""),
        "split": SCORED,
        "sha256": of_split.get("sha256", ""),
    }


def _numbers(
    params: EvaluateParams, measures: dict[str, Choice], trained: Trained
) -> dict[str, Any]:
    """The scores of the validation split, the references beside them, and what the chosen measures
    found.
    """
    shards, manifest = trained.shards, trained.manifest
    train = fitted_to(params, shards)
    references: dict[str, Any] = {SCORED: references_of(params, shards, SCORED, train)}
    references |= {"kneser_ney_order": params.ngram_order, "train_tokens": len(train)}
    if "entropy_bits_per_byte" in manifest:
        references["source_entropy"] = manifest["entropy_bits_per_byte"]
    taken, left_out = take(measures, trained)
    for line in left_out:
        print(f"evaluate: left out {line}", flush=True)
    of_split = measures_of(trained.scores[SCORED], shards.count(SCORED, "bytes"))
    return {
        SCORED: of_split,
        "references": references,
        **taken,
        "left_out": left_out,
        "about": about(measures, trained),
    }


def headlines(found: dict[str, Any]) -> dict[str, Any]:
    """Of all that measures.json holds, what metrics.json does: how the run ended, and HEADLINES
    under the same names.
    """
    kept: dict[str, Any] = {key: found[key] for key in ("status", "diverged") if key in found}
    for dotted in HEADLINES:
        *blocks, name = dotted.split(".")
        source, target = found, kept
        for block in blocks:
            source = source.get(block, {})
        if name not in source:
            continue
        for block in blocks:
            target = target.setdefault(block, {})
        target[name] = source[name]
    return kept


def score_split(
    params: ScoreParams, model: LanguageModel, shards: Shards, split: str, who: str = "evaluate"
) -> Score:
    """What a whole split costs the model, in windows of its context that advance by `stride`; `who`
    shows the progress.
    """
    stream = shards.stream(split)
    return score(model, stream, shards.bos, model.context, params.stride, f"{who}: {split}")


def check_model_fits(saved: dict[str, Any], shards: Shards) -> None:
    """Raise UserError when a model was trained with another tokenizer than the shards were made
    with.
    """
    if (
        saved.get("tokenizer_sha256") != shards.manifest["tokenizer_sha256"]
        or saved["vocabulary_size"] != shards.vocabulary_size
    ):
        raise UserError(
            "data/model was trained with another tokenizer than data/shards was made with; run"
            " `dvc repro train`"
        )


def measures_of(scored: Score, size: int) -> dict[str, float]:
    """A split's numbers under the names that metrics.json and measures.json have for them; `size`
    is its text in bytes.
    """
    with np.errstate(
        over="ignore"
    ):  # what a learning rate far too high has made is infinitely perplexed
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


def remark(shards: Shards, split: str, bits: float) -> str:
    """What has to be said about a loss that tells nothing of the model; empty where it may tell
    something.
    """
    ids = np.unique(shards.stream(split))
    if (ids != shards.bos).sum() == 1:
        return "this split is one token again and again, so a loss on it is no measure of learning"
    zero = remark_on_zero(bits)
    return f"{bits:.4f} bits/byte{zero}" if zero else ""


def fitted_to(params: ScoreParams, shards: Shards) -> Ids:
    """The part of the train split that references are fitted to: its first `ngram_megatokens`."""
    return shards.stream("train")[: max(1, int(params.ngram_megatokens * 1e6))]


def references_of(params: ScoreParams, shards: Shards, split: str, train: Ids) -> dict[str, float]:
    """Bits per byte of each reference on a split, fitted to `train` (from `fitted_to`)."""
    stream = shards.stream(split)
    ngram = references.NGram(train, shards.bos, shards.vocabulary_size, params.ngram_order)
    nats = {
        "uniform": references.uniform(stream, shards.bos, shards.vocabulary_size),
        "unigram": references.unigram(train, stream, shards.bos, shards.vocabulary_size),
        "kneser_ney": ngram.nats(stream),
    }
    size = shards.count(split, "bytes")
    return {name: bits_per_byte(value, size) for name, value in nats.items()}


def _read_log(log: Path) -> list[dict[str, Any]]:
    text = checked(log, made_by="train").read_text(encoding="utf-8")
    return [json.loads(line) for line in text.splitlines()]


def _curves(rows: list[dict[str, Any]], forward: float) -> dict[str, pd.DataFrame]:
    """The training log as two tables that plots can be drawn from, thinned to at most
    MOST_CURVE_ROWS rows.

    Beside the tokens of each line stand the FLOPs that learning from them takes by backpropagation.
    A table that the log has no line for is left out.
    """
    tables = {}
    for name, marker in (("training", "train_nats"), ("validation", "validation_nats")):
        spent = [
            {**row, "flops": training_flops(forward, row["tokens"])}
            for row in rows
            if marker in row
        ]
        kept = [{**{key: row[key] for key in ("step", "tokens", "flops")}, **row} for row in spent]
        every = -(-len(kept) // MOST_CURVE_ROWS) or 1
        if kept:
            tables[name] = pd.DataFrame(kept[::-1][::every][::-1])
    return tables


def _tables(trained: Trained) -> dict[str, pd.DataFrame]:
    """What the scores come to by position in the window, by confidence, and by class of
    character.
    """
    scored, stream = trained.scores[SCORED], trained.shards.stream(SCORED)
    return {
        "loss_by_position": _by_position(trained.scores),
        "calibration": _calibration(scored),
        "character_classes": character_classes.table(scored, stream, trained.tokenizer.token_bytes),
        "validation_blocks": blocks.table(scored, stream, trained.tokenizer.token_bytes),
    }


def _by_position(scores: dict[str, Score]) -> pd.DataFrame:
    """Mean loss at each position of the window, 1 being the first, one column for each split that
    was scored.
    """
    with np.errstate(invalid="ignore"):
        columns = {
            f"{split}_nats": pd.Series(scored.nats_at / scored.tokens_at)
            for split, scored in scores.items()
        }
    table = pd.DataFrame(columns)
    table.insert(0, "position", table.index + 1)
    return table.dropna()


def _calibration(scored: Score) -> pd.DataFrame:
    """For each bin of confidence that was used: how sure the model was on average, and how often it
    was right.
    """
    used = scored.calls > 0
    calls = scored.calls[used]
    shares = {
        "confidence": scored.confidence[used] / calls,
        "accuracy": scored.right[used] / calls,
        "predictions": calls,
    }
    return pd.DataFrame(shares)


def _write_csv(path: Path, table: pd.DataFrame) -> None:
    with whole_file(path) as partial:
        table.to_csv(partial, index=False, lineterminator="\n")


def _samples(params: EvaluateParams, model: LanguageModel, tokenizer: Tokenizer) -> str:
    """A page of generated text, one block for each prompt, drawn with seeds that count up from
    `seed`.

    With one seed for all, texts that come to the same tokens once go on alike.
    """
    page = [f"# Samples\n\nTemperature {params.temperature}, {params.sample_tokens} tokens each.\n"]
    for number, prompt in enumerate(params.prompts):
        seed = (params.seed + number) % 2**63
        text = generation.sample_text(
            model, tokenizer, prompt, params.sample_tokens, params.temperature, seed
        )
        title = f"After `{prompt}`" if prompt else "From nothing"
        fence = "~~~~~~"
        page.append(
            f"## {title}, seed {seed}\n\n{fence}text\n{prompt}{''.join(text).rstrip()}\n{fence}\n"
        )
    return "\n".join(page)


def _no_samples(diverged: dict[str, Any]) -> str:
    """The page of a run that diverged."""
    return (
        f"# Samples\n\nNone: the run diverged at step {diverged['step']:,}"
        f" ({diverged['reason']}).\n"
    )
