"""What `evaluate` writes: a model's scores, the references beside them, and its measures.

All of it is in small text files that Git keeps. Runs are judged by the validation split. The test
split stays sealed: `lmlab final` opens it and counts how often.
"""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from pydantic import Field

from lmlab.core.errors import UserError
from lmlab.core.files import whole_file, write_json, write_sums
from lmlab.core.params import Names, Params, nearest
from lmlab.core.registry import Choice
from lmlab.data.corpus_manifest import CorpusManifest
from lmlab.data.shards import Shards
from lmlab.data.tokenizers.base import Ids, Tokenizer
from lmlab.evaluation import coloured, references, samples, tables
from lmlab.evaluation.heldout import HeldOut, dumps
from lmlab.evaluation.measured import (
    Divergence,
    Facts,
    Measured,
    ReferenceScores,
    ScoredText,
    Scores,
    SplitScores,
    StartScores,
)
from lmlab.evaluation.measures.base import Trained, about, flat, measure_all
from lmlab.model import processes
from lmlab.model.models.base import LanguageModel
from lmlab.model.record import ModelRecord
from lmlab.model.scoring import Score, bits_per_byte, score, zero_loss_remark

SCORED = "validation"
"""The split that every run is scored on."""
BITS = {"float32": 32, "bfloat16": 16}


class ScoreParams(Params):
    """What decides the scores of a split and of the references beside it."""

    stride: int = Field(ge=1)
    ngram_order: int = Field(ge=1, le=12)
    ngram_megatokens: float = Field(ge=1e-6)
    device: Literal["cpu", "cuda", "mps"]
    threads: int = Field(ge=1, le=4096)


class EvaluateParams(ScoreParams):
    """The section `evaluate`."""

    processes: int = Field(ge=1, le=4096)
    measures: Names
    metrics: Names
    """Dotted names of the numbers that metrics.json repeats."""
    prompts: list[str]
    sample_tokens: int = Field(ge=0)
    temperature: float = Field(ge=0)
    seed: int = Field(ge=0)


def evaluate(
    params: EvaluateParams,
    measures: dict[str, Choice],
    model: LanguageModel,
    saved: ModelRecord,
    shards: Shards,
    tokenizer: Tokenizer,
    corpus: Path,
    log: Path,
    folder: Path,
) -> Measured:
    """Evaluate a run on the validation split, write all of it into `folder`, and return the record.

    `saved` is the model's model.json, `corpus` the folder of documents that the shards were made
    from, `log` the training log. A run that diverged is not scored: the record says where and why,
    and the curves end where its log ends.
    """
    rows = tables.read_log(log)
    manifest = CorpusManifest.read(corpus)
    scored = _score_validation(params, model, saved, shards)
    outcome: Scores | Divergence
    if isinstance(scored, Divergence):
        outcome, score_tables = scored, {}
        page = samples.page_without_samples(scored)
        held_out_text = HeldOut(split=SCORED, pieces=())
    else:
        trained = Trained(
            model, saved, shards, tokenizer, corpus, manifest, rows, {SCORED: scored}, params.stride
        )
        outcome = _measure(params, measures, trained)
        score_tables = tables.of_scores(trained)
        page = samples.page(
            model,
            tokenizer,
            params.prompts,
            params.sample_tokens,
            params.temperature,
            params.seed,
        )
        stream = shards.stream(SCORED)
        held_out_text = coloured.held_out(model, stream, scored, tokenizer, params.stride, SCORED)
    measured = Measured(_facts(params, model, saved, manifest), outcome, _start(saved, rows))
    curves = tables.curves(rows, saved)

    if not processes.is_first():
        return measured
    folder.mkdir(parents=True, exist_ok=True)
    record = measured.as_json()
    write_json(folder / "metrics.json", metrics(record, params.metrics))
    write_json(folder / "measures.json", record)
    csv_files = tables.write(score_tables | curves, folder)
    with whole_file(folder / "samples.md") as partial:
        partial.write_text(page, encoding="utf-8")
    with whole_file(folder / "heldout.json") as partial:
        partial.write_text(dumps(held_out_text), encoding="utf-8")
    json_files = ["metrics.json", "measures.json", "heldout.json"]
    write_sums(folder, [*json_files, "samples.md", *csv_files])
    return measured


# ---------------------------------------------------------------- scores


def check_model_fits(saved: ModelRecord, shards: Shards) -> None:
    """Raise UserError if a model was trained with another tokenizer than its shards."""
    same_tokenizer = saved.tokenizer_sha256 == shards.manifest.tokenizer_sha256
    if not same_tokenizer or saved.vocabulary_size != shards.vocabulary_size:
        raise UserError(
            "data/model was trained with another tokenizer than data/shards was made with; run"
            " `dvc repro train`"
        )


def _score_validation(
    params: ScoreParams, model: LanguageModel, saved: ModelRecord, shards: Shards
) -> Score | Divergence:
    """The score of the validation split, or where and why the run diverged."""
    if saved.diverged is not None:
        return Divergence(saved.diverged.step, saved.diverged.reason)
    try:
        scored = score_split(params, model, shards, SCORED)
    except FloatingPointError as error:
        return Divergence(saved.steps, str(error))
    if not math.isfinite(scored.nats):
        return Divergence(saved.steps, f"the loss on {SCORED} is {scored.nats}")
    bits = bits_per_byte(scored.nats, shards.count(SCORED, "bytes"))
    if warning := remark(shards, SCORED, bits):
        print(f"evaluate: {SCORED}: {warning}", flush=True)
    return scored


def score_split(
    params: ScoreParams, model: LanguageModel, shards: Shards, split: str, who: str = "evaluate"
) -> Score:
    """Score a whole split, in windows of the model's context that advance by `stride`.

    The progress bar is titled with `who`. Raises FloatingPointError when a logit is NaN.
    """
    stream = shards.stream(split)
    return score(model, stream, shards.bos, model.context, params.stride, f"{who}: {split}")


def split_scores(scored: Score, size: int) -> SplitScores:
    """A split's scores as they are recorded; `size` is its text in bytes."""
    with np.errstate(over="ignore"):  # far too high a learning rate gives infinite perplexity
        perplexity = float(np.exp(scored.nats_per_token))
    return SplitScores(
        bits_per_byte=bits_per_byte(scored.nats, size),
        nats_per_token=scored.nats_per_token,
        perplexity=perplexity,
        accuracy=scored.accuracy,
        calibration_error=scored.calibration_error,
        tokens=scored.tokens,
        bytes=size,
    )


def remark(shards: Shards, split: str, bits: float) -> str:
    """Why a loss in bits per byte says nothing about the model; empty where it may do so."""
    ids = np.unique(shards.stream(split))
    text_ids = ids[ids != shards.bos]
    if len(text_ids) == 1:
        return "this split is one token again and again, so a loss on it is no measure of learning"
    zero = zero_loss_remark(bits)
    return f"{bits:.4f} bits/byte{zero}" if zero else ""


# ---------------------------------------------------------------- references


def reference_text(params: ScoreParams, shards: Shards) -> Ids:
    """The text that references are fitted to: the first `ngram_megatokens` of the train split."""
    return shards.stream("train")[: max(1, int(params.ngram_megatokens * 1e6))]


def references_of(params: ScoreParams, shards: Shards, split: str, train: Ids) -> ReferenceScores:
    """Bits per byte of a split under each reference, fitted to `train` (see `reference_text`)."""
    stream, bos, vocabulary_size = shards.stream(split), shards.bos, shards.vocabulary_size
    size = shards.count(split, "bytes")
    n_gram = references.NGram(train, bos, vocabulary_size, params.ngram_order)
    uniform = references.uniform(stream, bos, vocabulary_size)
    unigram = references.unigram(train, stream, bos, vocabulary_size)
    return ReferenceScores(
        uniform=bits_per_byte(uniform, size),
        unigram=bits_per_byte(unigram, size),
        kneser_ney=bits_per_byte(n_gram.nats(stream), size),
    )


# ---------------------------------------------------------------- measures and the record


def _measure(params: EvaluateParams, measures: dict[str, Choice], trained: Trained) -> Scores:
    """The validation scores, the references beside them, and the numbers of every measure."""
    shards = trained.shards
    train = reference_text(params, shards)
    reference_scores = references_of(params, shards, SCORED, train)
    numbers, left_out = measure_all(measures, trained)
    for line in left_out:
        print(f"evaluate: left out {line}", flush=True)
    return Scores(
        validation=split_scores(trained.scores[SCORED], shards.count(SCORED, "bytes")),
        references=reference_scores,
        kneser_ney_order=params.ngram_order,
        train_tokens=len(train),
        source_entropy=trained.manifest.entropy_bits_per_byte,
        measures=numbers,
        left_out=left_out,
        about=about(measures, trained),
    )


def _facts(
    params: ScoreParams, model: LanguageModel, saved: ModelRecord, manifest: CorpusManifest
) -> Facts:
    return Facts(
        window=model.context,
        stride=params.stride,
        parameters=saved.parameters,
        tokens_seen=saved.tokens,
        training_bits=BITS[saved.precision],
        weights_sha256=saved.weights_sha256,
        environment={"torch": torch.__version__},
        text=ScoredText(manifest.corpus, SCORED, manifest.splits[SCORED].sha256),
    )


def _start(saved: ModelRecord, rows: list[dict[str, Any]]) -> StartScores | None:
    """What the run went on from; None of one from scratch."""
    if not saved.earlier:
        return None
    before = saved.earlier[-1]
    validated = [row for row in rows if "validation_bits_per_byte" in row]
    at_once = next((row for row in validated if row["tokens"] == before.tokens), None)
    return StartScores(
        commit=before.commit,
        recipe=before.recipe,
        steps=before.steps,
        tokens=before.tokens,
        bytes=before.bytes,
        flops=before.flops,
        bits_per_byte_before=before.bits_per_byte,
        bits_per_byte_at_once=at_once["validation_bits_per_byte"] if at_once else None,
    )


# ---------------------------------------------------------------- metrics.json


def check_metrics(params: EvaluateParams) -> None:
    """Raise UserError for a name in `evaluate.metrics` that no run could have.

    What a measure gives depends on the run, so of its names only the first word is checked.
    """
    facts = [*_names(Facts), *(f"validation.{name}" for name in _names(SplitScores))]
    for name in params.metrics:
        if name not in facts and name.partition(".")[0] not in ("references", *params.measures):
            raise UserError(
                f"params.yaml: evaluate.metrics: nothing measures {name};"
                f" {nearest(name, [*facts, *params.measures])}"
            )


def _names(record: type[Facts] | type[SplitScores]) -> list[str]:
    return [field.name for field in dataclasses.fields(record) if field.type in (int, float)]


def metrics(record: Mapping[str, Any], names: Sequence[str]) -> dict[str, Any]:
    """The content of metrics.json: how the run ended, and the numbers of `record` that are named.

    They stand where they stand in measures.json. One that this run has not is said, unless the run
    diverged and has none.
    """
    ending = {key: record[key] for key in ("status", "diverged") if key in record}
    named = _named(record, names)
    if "diverged" not in record:
        for name in sorted({*names} - {dotted for dotted, _ in flat(named)}):
            print(f"evaluate: metrics.json is without {name}, which this run has not", flush=True)
    return ending | named


def _named(record: Mapping[str, Any], names: Sequence[str], prefix: str = "") -> dict[str, Any]:
    kept: dict[str, Any] = {}
    for key, value in record.items():
        if isinstance(value, Mapping):
            if inner := _named(value, names, f"{prefix}{key}."):
                kept[key] = inner
        elif f"{prefix}{key}" in names:
            kept[key] = value
    return kept
