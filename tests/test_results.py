"""What `evaluate` writes: measures that agree with the scores they come from, small and the same each time."""

import csv
import json
import math
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import small

from lmlab import params
from lmlab.errors import UserError
from lmlab.evaluation import references, results
from lmlab.evaluation.results import EvaluateParams
from lmlab.evaluation.scoring import bits_per_byte, score
from lmlab.files import write_json, write_sums
from lmlab.measures import base as measures
from lmlab.models.base import LanguageModel
from lmlab.shards import Shards
from lmlab.tokenizers.base import Tokenizer

Corpus = tuple[Shards, Tokenizer]
CURVES = {"training.csv", "validation.csv", "loss_by_position.csv", "calibration.csv", "character_classes.csv"}
FILES = {"metrics.json", "samples.md", *CURVES}
SAVED = {"parameters": 1234, "tokens": 99, "precision": "bfloat16", "size": {"forward_operations_per_token": 10}}
BASE = {"stride": 5, "ngram_order": 3, "prompts": ["7 ", ""], "sample_tokens": 20, "threads": 1, "measures": ["entropy_gap"]}


@pytest.fixture
def corpus(shards_of: Callable[..., Corpus]) -> Corpus:
    text = "".join(f"{number} times {number} is {number * number}.\n" for number in range(60))
    return shards_of(text, ["7 times 8 is 56 €.\n", "and so on."], "12 times 12 is 144.\n")


@pytest.fixture
def model(corpus: Corpus) -> LanguageModel:
    return small.model(small.some_model(), vocabulary=corpus[0].vocabulary)


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


def evaluate(corpus: Corpus, model: LanguageModel, folder: Path, entropy: float | None = None, **changes: Any) -> Any:
    tree = small.tree(**{**BASE, **changes})
    values = params.section(tree, "evaluate", EvaluateParams)
    log = a_log(folder / "log", changes.get("log_steps", 3))
    texts = corpus[0].folder.parent / "corpus"
    write_json(texts / "manifest.json", {} if entropy is None else {"entropy_bits_per_byte": entropy})
    write_sums(texts)
    return results.evaluate(
        values, measures.chosen(tree, values.measures), model, SAVED, *corpus, texts, log, folder / "results"
    )


def table(path: Path) -> list[dict[str, str]]:
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


def test_the_measures_are_those_of_the_score(corpus: Corpus, model: LanguageModel, tmp_path: Path) -> None:
    metrics = evaluate(corpus, model, tmp_path)
    assert json.loads((tmp_path / "results/metrics.json").read_text()) == metrics
    shards, _ = corpus
    for split, size in (("validation", len("7 times 8 is 56 €.\nand so on.".encode())), ("test", 20)):
        scored = score(model, shards.stream(split), shards.document, model.context, 5)
        measures = metrics[split]
        assert measures["bits_per_byte"] == pytest.approx(scored.nats / math.log(2) / size)
        assert measures["perplexity"] == pytest.approx(math.exp(measures["nats_per_token"]))
        assert measures["tokens"] * measures["nats_per_token"] == pytest.approx(scored.nats)
        assert measures["bytes"] == size
        uniform = references.uniform(shards.stream(split), shards.document, shards.vocabulary)
        assert metrics["references"][split]["uniform"] == bits_per_byte(uniform, size)
    of_test = metrics["references"]["test"]
    assert of_test["kneser_ney"] < of_test["unigram"] < of_test["uniform"]
    assert metrics["references"]["train_tokens"] == len(shards.stream("train"))
    assert (metrics["window"], metrics["stride"], metrics["parameters"]) == (8, 5, 1234)
    assert "source_entropy" not in metrics["references"]


def test_a_model_far_from_any_text_is_measured_all_the_same(corpus: Corpus, model: LanguageModel, tmp_path: Path) -> None:
    model.readout.weight.data *= 1e6
    measures = evaluate(corpus, model, tmp_path)["validation"]
    assert measures["nats_per_token"] > 1000
    assert measures["perplexity"] == math.inf


def test_the_files_are_the_same_each_time(corpus: Corpus, model: LanguageModel, tmp_path: Path) -> None:
    for name in ("one", "two"):
        evaluate(corpus, model, tmp_path / name, entropy=1.5)
    one, two = (
        {path.name: path.read_bytes() for path in (tmp_path / name / "results").iterdir()} for name in ("one", "two")
    )
    assert set(one) == FILES | {"SHA256SUMS"}
    assert one == two
    vouched = {line.split("  ")[1] for line in one["SHA256SUMS"].decode().splitlines()}
    assert vouched == FILES
    assert json.loads(one["metrics.json"])["references"]["source_entropy"] == 1.5


def test_a_corpus_without_a_test_split_has_no_measures_of_one(shards_of: Callable[..., Corpus], tmp_path: Path) -> None:
    corpus = shards_of("abc" * 50, "abcabc")
    model = small.model(small.some_model(), vocabulary=corpus[0].vocabulary)
    metrics = evaluate(corpus, model, tmp_path)
    assert "test" not in metrics
    assert "test" not in metrics["references"]
    assert list(table(tmp_path / "results/loss_by_position.csv")[0]) == ["position", "validation_nats"]


def test_a_loss_that_says_nothing_is_called_that(
    shards_of: Callable[..., Corpus], tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for number, (validation, test, measured) in enumerate(
        [
            (["aaaa", "a"], "aab", ["evaluate: validation: this split is one token again and again"]),
            ("ab", "bbbb", ["evaluate: test: this split is one token again and again"]),
            ("ab", "abab", []),
        ]
    ):
        corpus = shards_of("ab" * 50, validation, test)
        model = small.model(small.some_model(), vocabulary=corpus[0].vocabulary)
        evaluate(corpus, model, tmp_path / str(number))
        lines = [line for line in capsys.readouterr().out.splitlines() if "no measure of learning" in line]
        assert [line.split(", so")[0] for line in lines] == measured
    monkeypatch.setattr(results, "bits_per_byte", lambda nats, size: 0.0)
    evaluate(corpus, model, tmp_path / "sure")
    lines = [line for line in capsys.readouterr().out.splitlines() if "no measure of learning" in line]
    assert [line.split(", since")[0] for line in lines] == [
        f"evaluate: {split}: 0.0000 bits/byte: a loss of 0" for split in ("validation", "test")
    ]


def test_the_ngram_is_fitted_to_no_more_than_wished(corpus: Corpus, model: LanguageModel, tmp_path: Path) -> None:
    assert evaluate(corpus, model, tmp_path, ngram_megatokens=0.0001)["references"]["train_tokens"] == 100


def test_curves_have_the_lines_of_the_log_thinned_to_the_last(corpus: Corpus, model: LanguageModel, tmp_path: Path) -> None:
    evaluate(corpus, model, tmp_path)
    assert [row["step"] for row in table(tmp_path / "results/training.csv")] == ["1", "2", "3"]
    assert [float(row["validation_nats"]) for row in table(tmp_path / "results/validation.csv")] == [2, 1, 2 / 3]
    evaluate(corpus, model, tmp_path, log_steps=2600)
    thinned = [int(row["step"]) for row in table(tmp_path / "results/training.csv")]
    assert len(thinned) <= results.MOST_CURVE_ROWS
    assert thinned[-1] == 2600
    assert {later - earlier for earlier, later in pairwise(thinned)} == {3}


def test_measures_stand_under_their_names_and_what_does_not_apply_is_told(
    corpus: Corpus, model: LanguageModel, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    metrics = evaluate(corpus, model, tmp_path, entropy=1.5)
    assert metrics["entropy_gap"]["test"] == pytest.approx(metrics["test"]["bits_per_byte"] - 1.5)
    assert metrics["left_out"] == []
    metrics = evaluate(corpus, model, tmp_path)
    assert "entropy_gap" not in metrics
    assert metrics["left_out"] == ["entropy_gap: the exact entropy of this corpus is not known"]
    assert "evaluate: left out entropy_gap" in capsys.readouterr().out


def test_curves_say_how_many_operations_the_tokens_took(corpus: Corpus, model: LanguageModel, tmp_path: Path) -> None:
    evaluate(corpus, model, tmp_path)
    for name in ("training", "validation"):
        rows = table(tmp_path / f"results/{name}.csv")
        assert list(rows[0])[:3] == ["step", "tokens", "operations"]
        assert [float(row["operations"]) for row in rows] == [3 * 10 * 4 * step for step in (1, 2, 3)]


def test_character_classes_hold_every_bit_of_validation(corpus: Corpus, model: LanguageModel, tmp_path: Path) -> None:
    metrics = evaluate(corpus, model, tmp_path)["validation"]
    rows = table(tmp_path / "results/character_classes.csv")
    assert sum(float(row["nats"]) for row in rows) == pytest.approx(metrics["tokens"] * metrics["nats_per_token"])
    assert sum(int(row["tokens"]) for row in rows) == metrics["tokens"]


def test_tables_hold_what_was_scored(corpus: Corpus, model: LanguageModel, tmp_path: Path) -> None:
    metrics = evaluate(corpus, model, tmp_path)
    positions = table(tmp_path / "results/loss_by_position.csv")
    assert [int(row["position"]) for row in positions] == list(range(1, 9))
    bins = table(tmp_path / "results/calibration.csv")
    assert sum(int(row["predictions"]) for row in bins) == metrics["validation"]["tokens"]
    right = sum(float(row["accuracy"]) * int(row["predictions"]) for row in bins)
    assert right / metrics["validation"]["tokens"] == pytest.approx(metrics["validation"]["accuracy"])


def test_samples_go_on_from_each_prompt(corpus: Corpus, model: LanguageModel, tmp_path: Path) -> None:
    evaluate(corpus, model, tmp_path)
    page = (tmp_path / "results/samples.md").read_text()
    assert page.index("After `7 `") < page.index("~~~~~~text\n7 ") < page.index("From nothing")
    evaluate(corpus, model, tmp_path, seed=1)
    assert (tmp_path / "results/samples.md").read_text() != page
    evaluate(corpus, model, tmp_path, prompts=[], sample_tokens=0)
    assert "~~~" not in (tmp_path / "results/samples.md").read_text()


WHOLE = '{"step": 1, "tokens": 4, "train_nats": 1.0}\n'


@pytest.mark.parametrize(
    ("log", "said"), [(None, "is missing; run `dvc repro train`"), ('{"step": 1', "is damaged"), (WHOLE, "is damaged")]
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
    write_json(texts / "manifest.json", {})
    write_sums(texts)
    with pytest.raises(UserError, match=said) as refused:
        results.evaluate(values, {}, model, SAVED, *corpus, texts, path, tmp_path / "results")
    assert str(path) in str(refused.value)


def test_a_model_of_another_tokenizer_is_refused(corpus: Corpus) -> None:
    shards, _ = corpus
    fits = {"tokenizer_sha256": shards.manifest["tokenizer_sha256"], "vocabulary": shards.vocabulary}
    results.check_model_fits(fits, shards)
    for other in ({"tokenizer_sha256": "0"}, {"vocabulary": 3}):
        with pytest.raises(UserError, match="another tokenizer"):
            results.check_model_fits({**fits, **other}, shards)
