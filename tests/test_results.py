"""What `evaluate` writes: measures that agree with the scores they come from, small and the same
each time.
"""

import csv
import json
import math
import re
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import small
import torch

from lmlab.core import params
from lmlab.core.errors import UserError
from lmlab.core.files import write_json, write_sums
from lmlab.data.shards import ShardedSplit, Shards
from lmlab.data.start import EarlierRun
from lmlab.data.tokenizers import byte
from lmlab.data.tokenizers.base import Tokenizer
from lmlab.evaluation import coloured, references, tables
from lmlab.evaluation import evaluate as results
from lmlab.evaluation.evaluate import EvaluateParams
from lmlab.evaluation.heldout import HeldOut
from lmlab.evaluation.measures import base as measures
from lmlab.experiments import preflight
from lmlab.experiments.compare.run import numbers
from lmlab.model import generation
from lmlab.model.models.base import LanguageModel
from lmlab.model.scoring import bits_per_byte, score

Corpus = tuple[Shards, Tokenizer]
CURVES = {
    "training.csv",
    "validation.csv",
    "loss_by_position.csv",
    "calibration.csv",
    "character_classes.csv",
}
CURVES |= {"validation_blocks.csv"}
FILES = {"metrics.json", "measures.json", "samples.md", "heldout.json", *CURVES}
SAVED = {"parameters": 1234, "tokens": 99, "precision": "bfloat16"}
BASE = {
    "stride": 5,
    "ngram_order": 3,
    "prompts": ["7 ", ""],
    "sample_tokens": 20,
    "threads": 1,
    "processes": 1,
    "measures": ["entropy_gap"],
    "metrics": ["validation.bits_per_byte", "validation.accuracy"],
}


@pytest.fixture
def corpus(shards_of: Callable[..., Corpus]) -> Corpus:
    text = "".join(f"{number} times {number} is {number * number}.\n" for number in range(60))
    return shards_of(text, ["7 times 8 is 56 €.\n", "and so on."], "12 times 12 is 144.\n")


@pytest.fixture
def model(corpus: Corpus) -> LanguageModel:
    return small.model(small.some_model(), vocabulary_size=corpus[0].vocabulary_size)


def a_log(folder: Path, steps: int = 3) -> Path:
    lines: list[dict[str, Any]] = []
    for step in range(1, steps + 1):
        lines += [
            {"step": step, "tokens": 4 * step, "train_nats": 1 / step},
            {"step": step, "tokens": 4 * step, "validation_nats": 2 / step},
            {"step": step, "tokens": 4 * step, "sample": "x"},
        ]
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "log.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    write_sums(folder)
    return folder / "log.jsonl"


DIVERGED = {"step": 3, "reason": "the loss is nan"}


def evaluate(
    corpus: Corpus,
    model: LanguageModel,
    folder: Path,
    entropy: float | None = None,
    saved: dict[str, Any] | None = None,
    **changes: Any,
) -> Any:
    """What measures.json holds after the stage's library call."""
    tree = small.tree(**{**BASE, **changes})
    values = params.section(tree, "evaluate", EvaluateParams)
    log = a_log(folder / "log", changes.get("log_steps", 3))
    texts = corpus[0].folder.parent / "corpus"
    facts = {} if entropy is None else {"entropy_bits_per_byte": entropy}
    write_json(texts / "manifest.json", small.corpus_manifest(**facts).record())
    write_sums(texts)
    measured = results.evaluate(
        values,
        measures.chosen(tree, values.measures),
        model,
        small.record(**{**SAVED, **(saved or {})}),
        *corpus,
        texts,
        log,
        folder / "results",
    )
    return measured.as_json()


def written(folder: Path, name: str) -> Any:
    return json.loads((folder / "results" / name).read_text())


def table(path: Path) -> list[dict[str, str]]:
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


def test_the_measures_are_those_of_the_score(
    corpus: Corpus, model: LanguageModel, tmp_path: Path
) -> None:
    record = evaluate(corpus, model, tmp_path, saved={"weights_sha256": "f00"})
    assert written(tmp_path, "measures.json") == record
    shards, _ = corpus
    size = len("7 times 8 is 56 €.\nand so on.".encode())
    scored = score(model, shards.stream("validation"), shards.bos, model.context, 5)
    measures = record["validation"]
    assert measures["bits_per_byte"] == pytest.approx(scored.nats / math.log(2) / size)
    assert measures["perplexity"] == pytest.approx(math.exp(measures["nats_per_token"]))
    assert measures["tokens"] * measures["nats_per_token"] == pytest.approx(scored.nats)
    assert measures["bytes"] == size
    uniform = references.uniform(shards.stream("validation"), shards.bos, shards.vocabulary_size)
    assert record["references"]["validation"]["uniform"] == bits_per_byte(uniform, size)
    assert record["references"]["train_tokens"] == len(shards.stream("train"))
    assert (record["window"], record["stride"], record["parameters"]) == (8, 5, 1234)
    assert "source_entropy" not in record["references"]
    assert (record["status"], record["weights_sha256"]) == ("finished", "f00")
    assert record["environment"] == {"torch": torch.__version__}
    assert record["text"] == {"corpus": "made_up", "split": "validation", "sha256": "f00"}


def test_references_of_another_split_are_ordered_as_they_must_be(corpus: Corpus) -> None:
    values = params.section(small.tree(**BASE), "evaluate", EvaluateParams)
    shards = corpus[0]
    train = results.reference_text(values, shards)
    scores = results.references_of(values, shards, "test", train)
    assert scores.kneser_ney < scores.unigram < scores.uniform


def test_the_test_split_is_not_looked_at(
    corpus: Corpus, model: LanguageModel, tmp_path: Path
) -> None:
    """Nothing that a run writes depends on it, and nothing is called by its name."""
    shards, tokenizer = corpus
    assert shards.count("test", "tokens")
    evaluate(
        corpus,
        model,
        tmp_path / "there",
        entropy=1.5,
        measures=small.tree()["evaluate"]["measures"],
    )
    nothing = ShardedSplit(tokens=0, bytes=0, documents=0, files=[])
    splits = {**shards.manifest.splits, "test": nothing}
    emptied = shards.manifest.model_copy(update={"splits": splits})
    without = Shards(shards.folder, emptied, shards.ids_type)
    evaluate(
        (without, tokenizer),
        model,
        tmp_path / "gone",
        entropy=1.5,
        measures=small.tree()["evaluate"]["measures"],
    )
    there, gone = (
        {path.name: path.read_bytes() for path in (tmp_path / name / "results").iterdir()}
        for name in ("there", "gone")
    )
    assert there == gone
    assert not any(b'"test"' in content or b"test_nats" in content for content in there.values())


def test_metrics_json_has_few_of_the_numbers_under_the_same_names(
    corpus: Corpus, model: LanguageModel, tmp_path: Path
) -> None:
    chosen = small.tree()["evaluate"]["measures"]
    all_numbers = dict(numbers(evaluate(corpus, model, tmp_path, 1.5, measures=chosen)))
    few = written(tmp_path, "metrics.json")
    assert few.pop("status") == "finished"
    assert dict(measures.flat(few)) == {
        name: all_numbers[name] for name in ("validation.bits_per_byte", "validation.accuracy")
    }


def test_any_number_can_be_named_for_metrics_json(capsys: pytest.CaptureFixture[str]) -> None:
    names = ["entropy_gap.validation", "parameters", "learning_curve.tokens_to.2.5", "novelty.x"]
    entropy_gap, tokens_to = {"validation": 0.5, "train": 0.6}, {"2.5": 9.0, "3.0": 5.0}
    record = {
        **{"status": "finished", "parameters": 12, "weights_sha256": "ab", "left_out": ["novelty"]},
        **{"learning_curve": {"tokens_to": tokens_to}, "entropy_gap": entropy_gap},
    }
    assert results.metrics(record, names) == {
        "status": "finished",
        "parameters": 12,
        "learning_curve": {"tokens_to": {"2.5": 9.0}},
        "entropy_gap": {"validation": 0.5},
    }
    assert capsys.readouterr().out.splitlines()[-1] == (
        "evaluate: metrics.json is without novelty.x, which this run has not"
    )
    assert results.metrics({"status": "diverged", "diverged": {"step": 3}}, names) == {
        "status": "diverged",
        "diverged": {"step": 3},
    }
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("validation.acuracy", "did you mean validation.accuracy?"),
        ("validation", "did you mean validation.bytes?"),
        ("inducton.score", "did you mean induction?"),
        ("text.sha256", "known here"),
    ],
)
def test_a_number_that_nothing_measures_is_refused_before_training(name: str, hint: str) -> None:
    tree = small.tree()
    tree["evaluate"]["metrics"] = ["parameters", name]
    with pytest.raises(UserError, match=re.escape(f"nothing measures {name}; {hint}")):
        preflight.check(tree, run=False)


def test_a_model_far_from_any_text_is_measured_all_the_same(
    corpus: Corpus, model: LanguageModel, tmp_path: Path
) -> None:
    model.readout.weight.data *= 1e6
    measures = evaluate(corpus, model, tmp_path)["validation"]
    assert written(tmp_path, "metrics.json")["status"] == "finished"
    assert measures["nats_per_token"] > 1000
    assert measures["perplexity"] == math.inf


def test_the_files_are_the_same_each_time(
    corpus: Corpus, model: LanguageModel, tmp_path: Path
) -> None:
    for name in ("one", "two"):
        evaluate(corpus, model, tmp_path / name, entropy=1.5)
    one, two = (
        {path.name: path.read_bytes() for path in (tmp_path / name / "results").iterdir()}
        for name in ("one", "two")
    )
    assert set(one) == FILES | {"SHA256SUMS"}
    assert one == two
    vouched = {line.split("  ")[1] for line in one["SHA256SUMS"].decode().splitlines()}
    assert vouched == FILES
    assert json.loads(one["measures.json"])["references"]["source_entropy"] == 1.5


def columns(path: Path) -> list[str]:
    with open(path, newline="") as file:
        return next(csv.reader(file))


def test_a_run_that_diverged_is_told_and_not_scored(
    corpus: Corpus, model: LanguageModel, tmp_path: Path
) -> None:
    """Every file is there, with the columns that plots ask for; the curves go as far as the log
    does.
    """
    evaluate(corpus, model, tmp_path / "whole")
    record = evaluate(corpus, model, tmp_path, saved={"status": "diverged", "diverged": DIVERGED})
    assert (record["status"], record["diverged"]) == ("diverged", DIVERGED)
    assert "validation" not in record
    assert written(tmp_path, "measures.json") == record
    assert written(tmp_path, "metrics.json") == {"status": "diverged", "diverged": DIVERGED}
    assert {path.name for path in (tmp_path / "results").iterdir()} == FILES | {"SHA256SUMS"}
    for name in CURVES:
        whole = tmp_path / "whole" / "results" / name
        assert set(columns(tmp_path / "results" / name)) == set(columns(whole)), name
    for name in ("training.csv", "validation.csv"):
        assert table(tmp_path / "results" / name) == table(tmp_path / "whole" / "results" / name)
    assert table(tmp_path / "results" / "calibration.csv") == []
    page = (tmp_path / "results/samples.md").read_text()
    assert "diverged at step 3 (the loss is nan)" in page
    assert "~~~" not in page


def test_a_run_that_diverged_before_its_first_line_has_tables_without_rows(
    corpus: Corpus, model: LanguageModel, tmp_path: Path
) -> None:
    evaluate(
        corpus, model, tmp_path, saved={"status": "diverged", "diverged": DIVERGED}, log_steps=0
    )
    for name in CURVES:
        assert table(tmp_path / "results" / name) == []
        assert columns(tmp_path / "results" / name)[0] in (
            "step",
            "position",
            "confidence",
            "class",
            "block",
        )


def test_a_model_whose_logits_are_no_numbers_has_diverged_whatever_its_record_says(
    corpus: Corpus, model: LanguageModel, tmp_path: Path
) -> None:
    model.readout.weight.data[:] = math.nan
    record = evaluate(corpus, model, tmp_path, saved={"steps": 7})
    assert record["status"] == "diverged"
    assert record["diverged"] == {"step": 7, "reason": "the model's logits are NaN"}


def test_a_loss_that_says_nothing_is_called_that(
    shards_of: Callable[..., Corpus],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    one_token = ["evaluate: validation: this split is one token again and again"]
    for number, (validation, expected) in enumerate([(["aaaa", "a"], one_token), ("ab", [])]):
        corpus = shards_of("ab" * 50, validation)
        model = small.model(small.some_model(), vocabulary_size=corpus[0].vocabulary_size)
        evaluate(corpus, model, tmp_path / str(number))
        lines = [
            line
            for line in capsys.readouterr().out.splitlines()
            if "no measure of learning" in line
        ]
        assert [line.split(", so")[0] for line in lines] == expected
    monkeypatch.setattr(results, "bits_per_byte", lambda nats, size: 0.0)
    evaluate(corpus, model, tmp_path / "sure")
    lines = [
        line for line in capsys.readouterr().out.splitlines() if "no measure of learning" in line
    ]
    assert [line.split(", since")[0] for line in lines] == [
        "evaluate: validation: 0.0000 bits/byte: a loss of 0"
    ]


def test_the_ngram_is_fitted_to_no_more_than_wished(
    corpus: Corpus, model: LanguageModel, tmp_path: Path
) -> None:
    assert (
        evaluate(corpus, model, tmp_path, ngram_megatokens=0.0001)["references"]["train_tokens"]
        == 100
    )


def test_curves_have_the_lines_of_the_log_thinned_to_the_last(
    corpus: Corpus, model: LanguageModel, tmp_path: Path
) -> None:
    evaluate(corpus, model, tmp_path)
    assert [row["step"] for row in table(tmp_path / "results/training.csv")] == ["1", "2", "3"]
    assert [
        float(row["validation_nats"]) for row in table(tmp_path / "results/validation.csv")
    ] == [2, 1, 2 / 3]
    evaluate(corpus, model, tmp_path, log_steps=2600)
    thinned = [int(row["step"]) for row in table(tmp_path / "results/training.csv")]
    assert len(thinned) <= tables.MOST_CURVE_ROWS
    assert thinned[-1] == 2600
    assert {later - earlier for earlier, later in pairwise(thinned)} == {3}


def test_measures_stand_under_their_names_and_what_does_not_apply_is_told(
    corpus: Corpus, model: LanguageModel, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    metrics = evaluate(corpus, model, tmp_path, entropy=1.5)
    assert metrics["entropy_gap"] == {
        "validation": pytest.approx(metrics["validation"]["bits_per_byte"] - 1.5)
    }
    assert metrics["left_out"] == []
    metrics = evaluate(corpus, model, tmp_path)
    assert "entropy_gap" not in metrics
    assert metrics["left_out"] == ["entropy_gap: the exact entropy of this corpus is not known"]
    assert "evaluate: left out entropy_gap" in capsys.readouterr().out


def test_curves_say_how_many_flops_the_tokens_took(
    corpus: Corpus, model: LanguageModel, tmp_path: Path
) -> None:
    evaluate(corpus, model, tmp_path)
    for name in ("training", "validation"):
        rows = table(tmp_path / f"results/{name}.csv")
        assert list(rows[0])[:4] == ["step", "tokens", "bytes", "flops"]
        assert [float(row["flops"]) for row in rows] == [3 * 10 * 4 * step for step in (1, 2, 3)]


def test_what_earlier_runs_cost_is_part_of_every_curve(
    corpus: Corpus, model: LanguageModel, tmp_path: Path
) -> None:
    """10 FLOPs forward for each token; 4 tokens, 6 bytes and 1,000 FLOPs were spent before."""
    before = EarlierRun(
        commit="1" * 40,
        recipe="plays:1:abcdef",
        weights_sha256="2" * 64,
        corpus="plays",
        tokenizer_sha256="3" * 64,
        learning_rule="backprop",
        optimizer="adamw",
        steps=1,
        tokens=4,
        bytes=6,
        flops=1000,
        bits_per_byte=3.25,
    )
    saved = {"tokens": 12, "bytes": 30, "flops": 1240, "earlier": [before]}
    found = evaluate(corpus, model, tmp_path, saved=saved)
    rows = table(tmp_path / "results/validation.csv")
    amounts = [tuple(float(row[key]) for key in ("tokens", "bytes", "flops")) for row in rows]
    assert amounts == [(4, 6, 1000), (8, 18, 1120), (12, 30, 1240)]
    assert found["start"] == {
        "commit": "1" * 40,
        "recipe": "plays:1:abcdef",
        "steps": 1,
        "tokens": 4,
        "bytes": 6,
        "flops": 1000,
        "bits_per_byte_before": 3.25,
        "bits_per_byte_at_once": None,  # as this log has no bits per byte
    }
    assert "start" not in evaluate(corpus, model, tmp_path)


def test_character_classes_hold_every_bit_of_validation(
    corpus: Corpus, model: LanguageModel, tmp_path: Path
) -> None:
    metrics = evaluate(corpus, model, tmp_path)["validation"]
    rows = table(tmp_path / "results/character_classes.csv")
    assert sum(float(row["nats"]) for row in rows) == pytest.approx(
        metrics["tokens"] * metrics["nats_per_token"]
    )
    assert sum(int(row["tokens"]) for row in rows) == metrics["tokens"]


def test_tables_hold_what_was_scored(corpus: Corpus, model: LanguageModel, tmp_path: Path) -> None:
    metrics = evaluate(corpus, model, tmp_path)
    positions = table(tmp_path / "results/loss_by_position.csv")
    assert [int(row["position"]) for row in positions] == list(range(1, 9))
    bins = table(tmp_path / "results/calibration.csv")
    assert sum(int(row["predictions"]) for row in bins) == metrics["validation"]["tokens"]
    right = sum(float(row["accuracy"]) * int(row["predictions"]) for row in bins)
    assert right / metrics["validation"]["tokens"] == pytest.approx(
        metrics["validation"]["accuracy"]
    )


def test_samples_after_the_same_prompt_differ(
    corpus: Corpus, model: LanguageModel, tmp_path: Path
) -> None:
    evaluate(corpus, model, tmp_path, prompts=["7 ", "7 "])
    one, other = (tmp_path / "results/samples.md").read_text().split("~~~~~~")[1::2]
    assert one != other


def test_samples_go_on_from_each_prompt(
    corpus: Corpus, model: LanguageModel, tmp_path: Path
) -> None:
    evaluate(corpus, model, tmp_path)
    page = (tmp_path / "results/samples.md").read_text()
    assert page.index("After `7 `") < page.index("~~~~~~text\n7 ") < page.index("From nothing")
    evaluate(corpus, model, tmp_path, seed=1)
    assert (tmp_path / "results/samples.md").read_text() != page
    evaluate(corpus, model, tmp_path, prompts=["7 ", "7 "], seed=4)
    first, second = (tmp_path / "results/samples.md").read_text().split("## After `7 `, seed ")[1:]
    for seed, sample in (
        ("4", first),
        ("5", second),
    ):  # each can be had again, and none is as another
        text = "".join(generation.sample_text(model, corpus[1], "7 ", 20, 0.8, int(seed))).rstrip()
        assert sample == f"{seed}\n\n~~~~~~text\n7 {text}\n~~~~~~\n" + "\n" * (seed == "4")
    assert first[1:].rstrip() != second[1:].rstrip()
    evaluate(corpus, model, tmp_path, prompts=[], sample_tokens=0)
    assert "~~~" not in (tmp_path / "results/samples.md").read_text()


WHOLE = '{"step": 1, "tokens": 4, "train_nats": 1.0}\n'


@pytest.mark.parametrize(
    ("log", "said"),
    [
        (None, "is missing; run `dvc repro train`"),
        ('{"step": 1', "is damaged"),
        (WHOLE, "is damaged"),
    ],
)
def test_a_log_that_cannot_be_read_is_one_line(
    corpus: Corpus, model: LanguageModel, tmp_path: Path, log: str | None, said: str
) -> None:
    path = a_log(tmp_path / "log")
    if log:
        path.write_text(log)
    else:
        path.unlink()
    values = params.section(small.tree(**BASE), "evaluate", EvaluateParams)
    texts = corpus[0].folder.parent / "corpus"
    write_json(texts / "manifest.json", small.corpus_manifest().record())
    write_sums(texts)
    with pytest.raises(UserError, match=said) as refused:
        results.evaluate(
            values, {}, model, small.record(**SAVED), *corpus, texts, path, tmp_path / "results"
        )
    assert str(path) in str(refused.value)


def test_a_model_of_another_tokenizer_is_refused(corpus: Corpus) -> None:
    shards, _ = corpus
    fits = {
        "tokenizer_sha256": shards.manifest.tokenizer_sha256,
        "vocabulary_size": shards.vocabulary_size,
    }
    results.check_model_fits(small.record(**fits), shards)
    for change in ({"tokenizer_sha256": "0"}, {"vocabulary_size": 3}):
        with pytest.raises(UserError, match="another tokenizer"):
            results.check_model_fits(small.record(**{**fits, **change}), shards)


# --------------------------------------------------------------------------------------- held-out
# text, coloured


def heldout(folder: Path) -> HeldOut:
    return HeldOut.model_validate_json((folder / "results/heldout.json").read_bytes())


def test_the_held_out_text_is_the_validation_text_and_costs_what_it_was_scored(
    corpus: Corpus, model: LanguageModel, tmp_path: Path
) -> None:
    found = evaluate(corpus, model, tmp_path)
    pieces = heldout(tmp_path).pieces
    assert "".join(piece.text for piece in pieces) == "7 times 8 is 56 €.\nand so on."
    assert [piece.text for piece in pieces if piece.nats is None] == [""]  # between two documents
    nats = sum(piece.nats for piece in pieces if piece.nats is not None)
    assert nats == pytest.approx(
        found["validation"]["nats_per_token"] * found["validation"]["tokens"], abs=0.05
    )


def test_the_guesses_are_the_likeliest_tokens_given_the_text_before(
    corpus: Corpus, model: LanguageModel, tmp_path: Path
) -> None:
    """Each piece is predicted in a window as the score has it; in the first these begin at BOS."""
    evaluate(corpus, model, tmp_path)
    shards, tokenizer = corpus
    stream = shards.stream("validation").astype(int)
    window = torch.from_numpy(stream[: model.context])
    with torch.no_grad():
        shares_TV = model.eval()(window[None])[0].softmax(-1)
    pieces = heldout(tmp_path).pieces[: model.context]
    assert len(pieces) == model.context
    for piece, target, shares_V in zip(pieces, stream[1:].tolist(), shares_TV, strict=False):
        assert piece.text.encode() == tokenizer.token_bytes[target]
        assert piece.nats == pytest.approx(-math.log(float(shares_V[target])), abs=0.001)
        best = shares_V.topk(coloured.MOST_GUESSES)
        probabilities = [guess.probability for guess in piece.guesses]
        assert probabilities == pytest.approx(best.values.tolist(), abs=0.001)


@pytest.mark.parametrize("text", ["a€b", "€€", "€", "\u20ac\n\U0001f600!"])
def test_a_character_of_several_tokens_is_one_piece(text: str) -> None:
    tokenizer = byte.Byte()
    ids = tokenizer.encode(text)
    spans = list(coloured._spans(ids, tokenizer, 100))
    assert [span.text for span in spans] == list(text)
    assert [span.end - span.start for span in spans] == [len(sign.encode()) for sign in text]


def test_no_more_of_the_text_is_kept_than_can_be_read(
    corpus: Corpus, model: LanguageModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(coloured, "MOST_CHARACTERS", 7)
    evaluate(corpus, model, tmp_path)
    assert "".join(piece.text for piece in heldout(tmp_path).pieces) == "7 times"


def test_a_run_that_diverged_has_no_coloured_text(
    corpus: Corpus, model: LanguageModel, tmp_path: Path
) -> None:
    evaluate(corpus, model, tmp_path, saved={"status": "diverged", "diverged": DIVERGED})
    assert heldout(tmp_path).pieces == ()
