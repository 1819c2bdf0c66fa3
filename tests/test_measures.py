"""What every measure keeps, and what each gives where the answer is known."""

import json
import math
import re
import string
from collections import Counter
from dataclasses import fields
from fnmatch import fnmatchcase
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import pytest
import small
import torch
from hypothesis import given
from hypothesis import strategies as st
from small import ShardsOf
from test_scoring import HandMade
from torch import Tensor, nn

from lmlab.core import registry
from lmlab.core.errors import UserError
from lmlab.data import documents
from lmlab.data.batches import Batches
from lmlab.data.corpora import grammar
from lmlab.evaluation import character_classes
from lmlab.evaluation import pairs as pairs_module
from lmlab.evaluation.about import About
from lmlab.evaluation.kneser_ney import KneserNey
from lmlab.evaluation.measured import Facts, Scores
from lmlab.evaluation.measures import minimal_pairs
from lmlab.evaluation.measures.base import (
    DoesNotApply,
    Measure,
    Trained,
    about,
    chosen,
    flat,
    measure_all,
)
from lmlab.evaluation.measures.learning_curve import mean_over_logarithm, reached
from lmlab.evaluation.measures.novelty import Copies
from lmlab.evaluation.measures.prequential import first_pass
from lmlab.evaluation.pairs import accuracy, text_nats
from lmlab.experiments import preflight
from lmlab.experiments.compare import meaning
from lmlab.model.models.base import LanguageModel, next_token_loss
from lmlab.model.scoring import score

MEASURES = registry.names("measures")
every_measure = pytest.mark.parametrize("name", MEASURES)
SENTENCES = "".join(
    f"The {animal} that we {verb}, and she is {place} the old {thing}.\n"
    for animal in ("dog", "cat", "bird", "horse")
    for verb in ("follow", "watch", "remember")
    for place in ("behind", "under", "above")
    for thing in ("house", "tree", "wall")
)
LOWERED = {
    "late": 5,
    "early": 2,
    "positions": 3,
    "texts": 3,
    "tokens": 40,
    "sequences": 4,
    "windows": 8,
    "lengths": [2, 4],
    "targets": [3.0, 2.5],
    "pairs": 30,
}


@pytest.fixture
def blimp(tmp_path: Path) -> Path:
    """A folder with files as BLiMP's are, of two phenomena."""
    folder = tmp_path / "blimp"
    folder.mkdir()
    for name, term, good, bad in (
        ("one", "agreement", "The cats sleep.", "The cats sleeps."),
        ("two", "agreement", "The cat sleeps.", "The cat sleep."),
        ("three", "order", "We saw the cat.", "We saw cat the."),
    ):
        line = {
            "sentence_good": good,
            "sentence_bad": bad,
            "field": "syntax",
            "linguistics_term": term,
            "UID": name,
        }
        (folder / f"{name}.jsonl").write_text((json.dumps(line) + "\n") * 3)
    return folder


def trained(
    shards_of: ShardsOf,
    train: Any = SENTENCES,
    validation: Any = SENTENCES,
    model: LanguageModel | None = None,
    **more: Any,
) -> Trained:
    """A run over some text. `more` are keyword arguments of `shards_of`, fields of Trained, or
    `context`.
    """
    texts = {key: more.pop(key) for key in ("test", "tokenizer") if key in more}
    shards, tokenizer = shards_of(train, validation, **texts)
    if model is None:
        model = small.model(
            small.some_model(),
            vocabulary_size=shards.vocabulary_size,
            context=more.pop("context", 8),
        )
    stride = more.pop("stride", 4)
    splits = [split for split in ("validation", "test") if shards.count(split, "tokens")]
    scores = {
        split: score(model, shards.stream(split), shards.bos, model.context, stride)
        for split in splits
    }
    order = Batches(shards, 1, model.context, 0, 1000)
    saved = small.record(
        size={"forward_flops_per_token": 7, "batch": 2}, pool_tokens=order.pool_tokens
    )
    log: list[dict[str, Any]] = []
    for step in (2, 4, 6):
        seen = {"step": step, "tokens": step * 2 * model.context}
        log.append({**seen, "train_nats": 5 - step / 2})
        log.append({**seen, "validation_nats": 3.0, "validation_bits_per_byte": 4 - step / 3})
    fields = {
        "saved": saved,
        "manifest": small.corpus_manifest(entropy_bits_per_byte=1.0),
        "log": log,
        **more,
    }
    corpus = shards.folder.parent / "corpus"
    return Trained(
        model,
        shards=shards,
        tokenizer=tokenizer,
        corpus=corpus,
        scores=scores,
        stride=stride,
        **fields,
    )


def measured(name: str, run: Trained, **options: Any) -> Any:
    tree = small.tree(**{**LOWERED, **options})
    return registry.choose(tree, "measures", name).build().measure(run)


def uniform(vocabulary_size: int, context: int = 8) -> HandMade:
    return HandMade(
        lambda tokens: torch.zeros(*tokens.shape, vocabulary_size), vocabulary_size, context
    )


# ---------------------------------------------------------------- what every measure keeps


@every_measure
def test_a_measure_says_what_decides_it_and_results_without_that_are_read_alike(
    name: str, shards_of: ShardsOf, blimp: Path
) -> None:
    """The records that evaluate writes, and what is taken to hold of results that were made before
    it did.
    """
    run = trained(shards_of)
    choice = registry.choose(small.tree(**LOWERED, folder=str(blimp)), "measures", name)
    (record,) = about({name: choice}, run).values()
    assert About.model_validate_json(record.model_dump_json()) == record
    part: type[Measure] = choice.part
    options = choice.options.model_dump()
    assert set(part.not_deciding) <= set(options)
    assert record.options == {key: options[key] for key in options if key not in part.not_deciding}
    known = {"window": 8, "stride": 4, "validated_at": [32.0, 96.0, 3.0]}
    for values in record.decided_by.values():
        assert values == {key: known.get(key) for key in values}
    if name not in meaning.OLDER:  # there are no results without the record
        return
    older = meaning.OLDER[name]
    for field in ("less_is_better", "more_is_better", "across_tokenizers", "facts"):
        assert set(getattr(record, field)) == set(getattr(older, field)), field
    assert {key: set(values) for key, values in record.decided_by.items()} == {
        key: set(values) for key, values in older.decided_by.items()
    }
    assert set(part.not_deciding) == set(meaning.NOT_DECIDING.get(name, ()))


@every_measure
def test_every_number_that_has_a_direction_or_is_a_fact_is_one_that_the_measure_gives(
    name: str, shards_of: ShardsOf, blimp: Path
) -> None:
    """So that no pattern is misspelt."""
    numbers = [
        key
        for key, _ in flat(
            measured(name, trained(shards_of), folder=str(blimp), targets=[8 / 3, 1.0, 3.5])
        )
    ]
    declared: type[Measure] = registry.find("measures", name)[0]
    for pattern in (
        *declared.less_is_better,
        *declared.more_is_better,
        *declared.facts,
        *declared.across_tokenizers,
        *declared.decided_by,
    ):
        assert any(fnmatchcase(number, pattern) for number in numbers), pattern
    assert not any(
        fnmatchcase(number, better) and fnmatchcase(number, fact)
        for number in numbers
        for better in (*declared.less_is_better, *declared.more_is_better)
        for fact in declared.facts
    )


@every_measure
@pytest.mark.parametrize("tokenizer", ["character", "bpe"])
def test_a_measure_gives_the_same_finite_numbers_twice_and_leaves_the_model_and_chance_as_they_were(
    name: str, tokenizer: str, shards_of: ShardsOf, blimp: Path
) -> None:
    run = trained(shards_of, test=SENTENCES[:300], tokenizer=tokenizer)
    before = {key: value.clone() for key, value in run.model.state_dict().items()}
    modes = [module.training for module in run.model.modules()]
    rng, numpy_chance = torch.get_rng_state(), np.random.get_state()[1].copy()  # type: ignore[index, union-attr]
    numbers = measured(name, run, folder=str(blimp))
    assert dict(flat(numbers))
    assert all(math.isfinite(value) for _, value in flat(numbers))
    assert json.loads(json.dumps(numbers)) == numbers
    assert torch.equal(torch.get_rng_state(), rng)
    assert (np.random.get_state()[1] == numpy_chance).all()  # type: ignore[index]
    assert all(torch.equal(value, before[key]) for key, value in run.model.state_dict().items())
    assert [module.training for module in run.model.modules()] == modes
    assert all(parameter.grad is None for parameter in run.model.parameters())
    torch.manual_seed(99)
    assert measured(name, run, folder=str(blimp)) == numbers


@every_measure
@pytest.mark.parametrize("text", ["ab" * 10, "a\n" * 10, "€" * 40, "x" * 9, ["a", "b" * 30, "c"]])
@pytest.mark.parametrize("tokenizer", ["character", "byte"])
def test_a_text_too_small_or_odd_is_measured_or_left_out_with_a_reason(
    name: str, text: Any, tokenizer: str, shards_of: ShardsOf, blimp: Path
) -> None:
    run = trained(shards_of, text, "b", tokenizer=tokenizer, context=4)
    tree = small.tree(folder=str(blimp))  # all else as in params.yaml
    numbers_of, left_out = measure_all(chosen(tree, [name]), run)
    assert len(numbers_of) + len(left_out) == 1
    assert all(math.isfinite(value) for _, value in flat(numbers_of))
    assert all(
        line.startswith(f"{name}: ") and "\n" not in line and len(line) > len(name) + 10
        for line in left_out
    )


@pytest.mark.parametrize("model", registry.names("models"))
def test_the_default_measures_suit_every_model(model: str, shards_of: ShardsOf) -> None:
    run = trained(shards_of)
    tree = small.tree(
        **{key: LOWERED[key] for key in ("texts", "tokens", "sequences", "windows", "pairs")}
    )
    built = small.model(
        registry.choose(tree, "models", model),
        vocabulary_size=run.shards.vocabulary_size,
        context=16,
    )
    numbers_of, left_out = measure_all(
        chosen(tree, tree["evaluate"]["measures"]), trained(shards_of, model=built)
    )
    # which looks as far as position 127
    assert {line.split(":")[0] for line in left_out} == {"context_gain"}
    assert set(numbers_of) == set(tree["evaluate"]["measures"]) - {"context_gain"}


def test_no_measure_has_the_name_of_what_evaluate_writes_anyway() -> None:
    keys = {field.name for record in (Facts, Scores) for field in fields(record)}
    assert keys.isdisjoint(MEASURES)
    assert {"status", "diverged", "test"}.isdisjoint(MEASURES)


def test_the_measures_of_params_yaml_are_checked_before_anything_runs(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(small.PROJECT)
    tree = small.tree()

    def with_list(names: list[str]) -> dict[str, Any]:
        return {**tree, "evaluate": {**tree["evaluate"], "measures": names}}

    preflight.check(with_list([]))
    for names, message in (
        (["noveltly"], "there is no 'noveltly' in measures; did you mean novelty"),
        (["novelty", "novelty"], "novelty is named twice"),
        (["blimp"], r"measures\.blimp\.folder: 'nothing' is no folder with BLiMP's \.jsonl files"),
    ):
        with pytest.raises(UserError, match=message) as refused:
            preflight.check(with_list(names))
        assert "\n" not in str(refused.value)


def test_a_number_that_is_none_is_left_out_by_name(shards_of: ShardsOf) -> None:
    run = trained(shards_of, manifest=small.corpus_manifest(entropy_bits_per_byte=math.nan))
    numbers_of, left_out = measure_all(chosen(small.tree(), ["entropy_gap"]), run)
    assert (numbers_of, left_out) == (
        {},
        ["entropy_gap: validation is nan, not a finite number"],
    )


# ---------------------------------------------------------------- learning_curve


def test_a_target_is_reached_where_a_line_over_the_logarithm_of_tokens_crosses_it() -> None:
    tokens = [10.0, 100.0, 1000.0]
    assert reached(tokens, [4.0, 3.0, 1.0], 3.0) == pytest.approx(100)
    assert reached(tokens, [4.0, 3.0, 1.0], 3.5) == pytest.approx(10**1.5)
    assert reached(tokens, [4.0, 3.0, 1.0], 1.5) == pytest.approx(10**2.75)
    assert reached(tokens, [4.0, 3.0, 1.0], 1.0) == pytest.approx(1000)
    assert reached(tokens, [4.0, 3.0, 1.0], 0.9) is None
    assert reached(tokens, [4.0, 3.0, 1.0], 5.0) == 10
    assert reached(tokens, [4.0, 2.0, 4.0], 3.0) == pytest.approx(10**1.5)  # the first time counts
    assert reached([0.0, 10.0], [4.0, 2.0], 3.0) == pytest.approx(5)
    assert reached([], [], 3.0) is None


def test_the_mean_over_a_curve_that_is_straight_over_the_logarithm_is_its_middle() -> None:
    assert mean_over_logarithm([1.0, 10.0, 100.0], [3.0, 2.0, 1.0]) == pytest.approx(2)
    assert mean_over_logarithm([1.0, 10.0, 10_000.0], [3.0, 3.0, 1.0]) == pytest.approx(
        (3 + 3 * 2) / 4
    )


def test_tokens_and_flops_to_a_target_are_those_of_the_log(shards_of: ShardsOf) -> None:
    run = trained(shards_of)  # bits: 10/3, 8/3, 2 after 32, 64, 96 tokens
    numbers = measured("learning_curve", run, targets=[8 / 3, 1.0, 3.5])
    assert numbers["tokens_to"] == {
        str(8 / 3): pytest.approx(64)
    }  # 1 is never reached, 3.5 nobody knows when
    assert numbers["flops_to"] == {str(8 / 3): pytest.approx(3 * 7 * 64)}
    assert (numbers["tokens"], numbers["flops"]) == (96, 3 * 7 * 96)
    assert (numbers["tokens_to_more_than"], numbers["tokens_to_at_most"]) == (
        {"1.0": 96},
        {"3.5": 32},
    )
    assert numbers["flops_to_more_than"] == {"1.0": 3 * 7 * 96}


# ---------------------------------------------------------------- prequential


@given(
    losses=st.lists(st.floats(0.5, 9), min_size=1, max_size=40),
    every=st.integers(1, 7),
    steps=st.integers(0, 50),
)
def test_the_sum_of_the_losses_is_rebuilt_from_a_log_of_means(
    losses: list[float], every: int, steps: int
) -> None:
    ends = sorted({*range(every, len(losses), every), len(losses)})
    starts = [0, *ends[:-1]]
    rows = [
        (end, sum(losses[start:end]) / (end - start))
        for start, end in zip(starts, ends, strict=True)
    ]
    whole = steps in (0, *ends) or steps > len(losses)
    seen, total = first_pass(rows, steps)
    assert seen == min(steps, len(losses))
    if whole:
        assert total == pytest.approx(sum(losses[:steps]))
    assert total <= sum(losses) + 1e-9


def test_a_run_of_less_than_a_pass_pays_for_the_rest_with_its_final_model(
    shards_of: ShardsOf,
) -> None:
    run = trained(shards_of)
    order = Batches(run.shards, 1, 8, 0, run.saved.pool_tokens)
    numbers = measured("prequential", run, windows=10_000)
    learning = (
        (4 + 3 + 2) * 2 * 2 * 8 / math.log(2)
    )  # three rows of two steps, two windows of eight tokens each
    assert numbers["learning"]["bits"] == pytest.approx(learning)
    windows = [order.at(number) for number in range(12, order.first_pass)]
    with torch.no_grad():
        rest = sum(
            float(next_token_loss(run.model(tokens), targets)) * 8 for tokens, targets in windows
        ) / math.log(2)
    assert numbers["rest"]["bits"] == pytest.approx(rest)
    assert numbers["bits"] == pytest.approx(learning + rest)
    assert numbers["bytes"] == pytest.approx(
        order.first_pass * 8 * len(SENTENCES) / (len(SENTENCES) + 1)
    )
    assert numbers["bits_per_byte"] == pytest.approx(numbers["bits"] / numbers["bytes"])


def test_only_the_first_pass_counts(shards_of: ShardsOf) -> None:
    run = trained(shards_of)
    windows = Batches(run.shards, 1, 8, 0, run.saved.pool_tokens).first_pass
    log = [
        {"step": step, "train_nats": math.log(2)} for step in range(1, 2 * windows)
    ]  # a bit for each token
    numbers = measured("prequential", trained(shards_of, log=log))
    assert "rest" not in numbers
    assert numbers["bits"] == pytest.approx(windows * 8)


def test_windows_before_any_text_comes_again_are_all_different(shards_of: ShardsOf) -> None:
    shards, _ = shards_of(SENTENCES)
    text = shards.stream("train").astype(int).tolist()
    order = Batches(shards, 1, 8, 3, 1000)
    first = {tuple(order.at(number)[0][0].tolist()) for number in range(order.first_pass)}
    assert sum(len(window) for window in [first]) <= order.first_pass
    starts = [
        number for number in range(len(text) - 8) if tuple(text[number : number + 8]) in first
    ]
    assert order.first_pass in ((len(text) - 1) // 8, (len(text) - 1) // 8 - 1)
    assert len(starts) >= order.first_pass


# ---------------------------------------------------------------- generalisation_gap


def test_without_anything_learned_by_heart_the_same_text_has_no_gap(shards_of: ShardsOf) -> None:
    run = trained(shards_of, SENTENCES, SENTENCES, stride=8)
    numbers = measured("generalisation_gap", run, tokens=10**6)
    assert numbers["gap"]["nats_per_token"] == pytest.approx(
        0, abs=0.01
    )  # but for the first window and stretches' ends
    assert numbers["train"]["tokens"] <= len(SENTENCES)
    uniformly = measured(
        "generalisation_gap", trained(shards_of, model=uniform(run.shards.vocabulary_size))
    )
    assert uniformly["gap"]["nats_per_token"] == pytest.approx(0)
    assert uniformly["train"]["nats_per_token"] == pytest.approx(
        math.log(run.shards.vocabulary_size)
    )


def test_the_gap_is_what_knowing_the_train_split_is_worth(shards_of: ShardsOf) -> None:
    shards, _ = shards_of("a" * 400, "b" * 50)

    def only_a(tokens: Tensor) -> Tensor:
        return torch.tensor([3.0, *[0.0] * (shards.vocabulary_size - 1)]).expand(*tokens.shape, -1)

    run = trained(shards_of, "a" * 400, "b" * 50, HandMade(only_a, shards.vocabulary_size, 8))
    numbers = measured("generalisation_gap", run)
    validation = run.scores["validation"].nats_per_token
    train = -math.log(math.exp(3) / (math.exp(3) + shards.vocabulary_size - 1))
    assert numbers["train"]["nats_per_token"] == pytest.approx(train)
    assert numbers["gap"]["nats_per_token"] == pytest.approx(validation - train)
    assert numbers["train"]["bits_per_byte"] == pytest.approx(train / math.log(2))


# ---------------------------------------------------------------- context_gain and induction


def test_context_gain_is_the_loss_at_early_positions_minus_that_at_late_ones(
    shards_of: ShardsOf,
) -> None:
    shards, _ = shards_of(SENTENCES)

    def surer_and_surer(
        tokens: Tensor,
    ) -> Tensor:  # of whatever is right, by the position in the window
        logits = torch.zeros(*tokens.shape, shards.vocabulary_size)
        positions = torch.arange(1, tokens.shape[1] + 1, dtype=torch.float)
        return logits - positions[None, :, None] * (
            torch.arange(shards.vocabulary_size) == shards.bos
        )

    run = trained(shards_of, model=HandMade(surer_and_surer, shards.vocabulary_size, 8))
    known = run.scores["validation"]
    numbers = measured("context_gain", run, early=2, late=6, positions=2)
    early, late = (
        (known.nats_by_position / known.tokens_by_position)[band].mean()
        for band in (slice(1, 3), slice(5, 7))
    )
    assert numbers["nats"] == pytest.approx(early - late)
    assert numbers["nats"] > 0
    with pytest.raises(DoesNotApply, match="as far as position 9, and the window ends at 8"):
        measured("context_gain", run, late=7, positions=3)


def copier(vocabulary_size: int, context: int) -> HandMade:
    """Sure of what came after the last token's earlier occurrence; without one, nothing is likelier
    than another.
    """

    def copy(tokens_BT: Tensor) -> Tensor:
        logits = torch.zeros(*tokens_BT.shape, vocabulary_size)
        for row, tokens in enumerate(tokens_BT.tolist()):
            for at, token in enumerate(tokens):
                if token in tokens[:at]:
                    earlier = at - 1 - tokens[:at][::-1].index(token)
                    logits[row, at, tokens[earlier + 1]] = 1000
        return logits

    return HandMade(copy, vocabulary_size, context)


@pytest.mark.parametrize("context", [4, 7, 16, 200])
def test_a_perfect_copier_scores_one_and_a_uniform_model_zero(
    shards_of: ShardsOf, context: int
) -> None:
    vocabulary_size = shards_of(SENTENCES)[0].vocabulary_size
    copied = measured("induction", trained(shards_of, model=copier(vocabulary_size, context)))
    assert copied["score"] == pytest.approx(1)
    assert copied["first_nats"] == pytest.approx(math.log(vocabulary_size))
    blind = measured("induction", trained(shards_of, model=uniform(vocabulary_size, context)))
    assert blind["score"] == pytest.approx(0)
    assert blind["period"] == min((context + 1) // 2, len(set(SENTENCES)))


# ---------------------------------------------------------------- novelty


@given(rng=st.randoms(use_true_random=False), letters=st.sampled_from([1, 2, 5, 26]))
def test_copies_are_those_that_searching_finds(rng: Random, letters: int) -> None:
    def some(most: int) -> str:
        return "".join(
            rng.choice(string.ascii_lowercase[:letters]) for _ in range(rng.randrange(most))
        )

    others = [some(200) for _ in range(3)]
    texts = [some(30), some(30), f"Ω{others[0][3:130]}€", ""]
    copies = Copies(texts, others)
    there = {
        length: [text[at : at + length] for text in texts for at in range(len(text) - length + 1)]
        for length in range(1, 131)
    }
    occurring = {
        length: [any(piece in other for other in others) for piece in pieces]
        for length, pieces in there.items()
    }
    for length in (1, 2, 3, 8, 13, 14, 29, 30, 31, 60, 61, 62, 63, 64, 100, 124, 127, 128):
        if occurring[length]:
            assert copies.share(length) == pytest.approx(np.mean(occurring[length]))
    assert copies.longest() == max(
        (length for length, hits in occurring.items() if any(hits)), default=0
    )


def test_a_model_that_recites_is_told_from_one_that_does_not(shards_of: ShardsOf) -> None:
    text = string.ascii_lowercase * 6
    shards, _ = shards_of(text)

    def recites(tokens: Tensor) -> Tensor:
        following = torch.where(tokens == shards.bos, 0, (tokens + 1) % 26)
        return 100.0 * nn.functional.one_hot(following, shards.vocabulary_size)

    run = trained(shards_of, text, "mnopqrst" * 40, HandMade(recites, shards.vocabulary_size, 8))
    numbers = measured("novelty", run, lengths=[5, 20], texts=2, tokens=50)
    assert numbers["generated"] == {"copied": {"5": 1.0, "20": 1.0}, "longest_copy": 50}
    assert numbers["validation"]["longest_copy"] == 8
    assert numbers["validation"]["copied"]["20"] == 0
    assert numbers["characters"] == 100
    assert numbers["train_characters"] == len(text)


def test_as_many_characters_of_validation_are_searched_for(shards_of: ShardsOf) -> None:
    numbers = measured(
        "novelty", trained(shards_of, validation="To be or not."), lengths=[2], tokens=30
    )
    assert 10 <= numbers["characters"] <= 13


# ---------------------------------------------------------------- minimal pairs


def test_a_tie_scores_one_half() -> None:
    assert accuracy([1.0, 2.0, 3.0, 4.0], [2.0, 2.0, 3.0 + 1e-9, 1.0]) == pytest.approx(
        (1 + 0.5 + 0.5 + 0) / 4
    )


@pytest.mark.parametrize("context", [4, 9, 200])
def test_a_text_costs_what_its_tokens_do_however_long_it_is(
    shards_of: ShardsOf, context: int
) -> None:
    shards, tokenizer = shards_of(SENTENCES)
    model = small.rough(small.some_model(), vocabulary_size=shards.vocabulary_size, context=context)
    texts = ["The dog.", "", "The cat that we follow.", "x", "is it"]
    nats, lengths = text_nats(model, tokenizer, texts)
    assert lengths.tolist()[:3] == [8, 0, 23]
    for text, text_sum in zip(texts, nats, strict=True):
        ids = np.array([shards.bos, *tokenizer.encode(text).tolist()], dtype=np.uint8)
        alone = score(model, ids, shards.bos, context, max(1, context // 2)).nats if text else 0.0
        assert text_sum == pytest.approx(alone, rel=1e-5)


def test_texts_that_fit_are_read_together(
    shards_of: ShardsOf, monkeypatch: pytest.MonkeyPatch
) -> None:
    shards, tokenizer = shards_of(SENTENCES)
    model = small.rough(small.some_model(), vocabulary_size=shards.vocabulary_size, context=16)
    passes: list[tuple[int, int]] = []
    model.register_forward_pre_hook(lambda _, given: passes.append(tuple(given[0].shape)))
    monkeypatch.setattr(pairs_module, "TOKENS_AT_ONCE", 15)
    text_nats(model, tokenizer, ["The dog", "behind", "th", "The cat", "a"])
    assert passes == [
        (2, 2),
        (2, 7),
        (1, 7),
    ]  # by their lengths: 1 and 2, for three of 6 would be 18; 6 and 7; and 7


def all_pairs(
    shards_of: ShardsOf, train: Any, validation: Any, corpus: str = "grammar", seed: int = 0
) -> dict[str, Any]:
    shards, tokenizer = shards_of(train, validation)
    run = Trained(
        uniform(1),
        small.record(),
        shards,
        tokenizer,
        shards.folder.parent / "corpus",
        small.corpus_manifest(corpus),
        [],
        {},
        4,
    )
    return minimal_pairs.MinimalPairs(minimal_pairs.Options(pairs=200, seed=seed)).pairs(run)


def test_both_sides_of_a_pair_differ_and_have_the_same_length(shards_of: ShardsOf) -> None:
    for kind, pairs in all_pairs(shards_of, SENTENCES, SENTENCES).items():
        assert len(pairs) >= 10
        for pair in pairs:
            assert pair.good != pair.bad
            assert sum(map(len, pair.good)) == sum(map(len, pair.bad))
            if kind in minimal_pairs.GRAMMAR:
                assert sorted(" ".join(pair.good).split()) == sorted(" ".join(pair.bad).split())
            else:
                assert pair.good[0] in SENTENCES


def test_the_kinds_of_pairs_are_what_they_say(shards_of: ShardsOf) -> None:
    one = "I fear the man, and he is not at home."
    runs = [all_pairs(shards_of, one, one, "", seed) for seed in range(20)]
    bad = {
        kind: {pair.bad[0] for pairs in runs for pair in pairs[kind]}
        for kind in minimal_pairs.KINDS
    }
    assert bad["repeated_word"] == {
        "I fear the the, and he is not at home.",
        "I fear the man, and he he not at home.",
    }
    assert bad["misplaced_punctuation"] == {"I fear the man ,and he is not at home."}
    assert bad["agreement"] == {"I fear the man, and he am not at home."}
    assert bad["misspelt_word"] == {
        one.replace("fear", "fera"),
        one.replace("fear", "faer"),
        one.replace("home", "hoem"),
        one.replace("home", "hmoe"),
    }
    assert one.replace("he is", "is he") in bad["swapped_words"]
    assert {len(sentence) for sentence in bad["swapped_words"]} == {len(one)}


def test_no_wrong_sentence_nor_what_is_wrong_in_it_stands_in_the_training_text(
    shards_of: ShardsOf, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Texts of so few words that what is wrong comes up by itself, at all edges, across what is
    read in one piece.
    """
    monkeypatch.setattr(documents, "PART_CHARACTERS", 300)
    monkeypatch.setattr(minimal_pairs, "CHARACTERS", 1500)
    rng = Random(5)
    words = [
        "he",
        "is",
        "am",
        "it",
        "was",
        "are",
        "form",
        "from",
        "the",
        "dog",
        "dogs",
        "sleep",
        "sleeps",
        "that",
        "see",
    ]

    def text(lines: int) -> str:
        drawn = []
        for _ in range(lines):
            pieces = [
                rng.choice(words) + rng.choice(["", "", "", ",", "'", " ,", "\n", ".", ". "])
                for _ in range(7)
            ]
            drawn.append(
                rng.choice(["", "'", "x"])
                + " ".join(pieces).capitalize()
                + rng.choice(".!? ")
                + "\n"
            )
        return "".join(drawn)

    kept: Counter[str] = Counter()
    for _ in range(3):
        texts = [text(40), text(20)]
        train = "\0".join(texts)
        for kind, pairs in all_pairs(shards_of, texts, text(300)).items():
            kept[kind] += len(pairs)
            for pair in pairs:
                if kind in minimal_pairs.GRAMMAR:
                    assert not {line.strip("\n") for line in pair.bad} & {*train.split("\n")}
                    continue
                assert pair.bad[0] not in train
                wrong = difference(
                    pair,
                    {"repeated_word": 2, "agreement": 2, "misplaced_punctuation": 1}.get(kind, 0),
                )
                ended = "(?=[a-z])" if kind == "misplaced_punctuation" else r"(?!\w)"
                assert not re.search(rf"(?<!\w){re.escape(wrong)}{ended}", train, re.IGNORECASE), (
                    kind,
                    wrong,
                )
    assert all(kept[kind] > 5 for kind in kept if kind != "agreement"), kept


def difference(pair: minimal_pairs.Pair, before: int) -> str:
    """The words of the wrong side from the first to the last that is not in its place, and some
    pieces before.
    """
    good, bad = (re.findall(r"[\w']+|[^\w']+", side[0]) for side in pair)
    first = next(at for at, (one, other) in enumerate(zip(good, bad, strict=False)) if one != other)
    last = next(
        at
        for at, (one, other) in enumerate(zip(good[::-1], bad[::-1], strict=False))
        if one != other
    )
    return "".join(bad[first - before : len(bad) - last]).strip("' ")


def test_the_grammars_pairs_are_right_and_wrong_by_the_grammar_itself(shards_of: ShardsOf) -> None:
    """A parser of the grammar's subjects and verbs, of its own: every good side it accepts, every
    bad one it refuses.
    """
    words = {
        symbol: {piece[0].strip() for _, piece in rules}
        for symbol, rules in grammar.rules(0.3).items()
    }

    def agrees(sentence: str) -> bool:
        taken = sentence.removesuffix(".\n").split()
        one = taken[1] in words["NOUN "]
        assert one or taken[1] in words["NOUNS "]
        if "that" in taken:
            assert taken[2] == "that"
            inner = taken[3] in words["ACTS "]
            assert inner == one
            assert (taken[5] in words["NOUN "]) != one  # what stands beside the verb misleads
        return taken[-1] in words["RESTS " if one else "REST "]

    by_kind = all_pairs(shards_of, SENTENCES, SENTENCES)
    for kind in minimal_pairs.GRAMMAR:
        assert len(by_kind[kind]) >= 30
        for pair in by_kind[kind]:
            assert all(map(agrees, pair.good))
            assert not any(map(agrees, pair.bad))


@pytest.mark.parametrize("tokenizer", ["character", "byte"])
def test_a_model_to_which_all_texts_are_alike_gets_one_half_of_every_kind(
    shards_of: ShardsOf, tokenizer: str
) -> None:
    shards, _ = shards_of(SENTENCES, tokenizer=tokenizer)
    run = trained(
        shards_of,
        model=uniform(shards.vocabulary_size, 200),
        tokenizer=tokenizer,
        manifest=small.corpus_manifest("grammar"),
    )
    numbers = measured("minimal_pairs", run)
    assert set(numbers["accuracy"]) == {*minimal_pairs.KINDS, *minimal_pairs.GRAMMAR}
    assert set(numbers["accuracy"].values()) == {0.5}
    assert numbers["mean"] == numbers["by_length_alone"] == 0.5


def test_a_model_of_pairs_of_letters_knows_a_misplaced_comma(shards_of: ShardsOf) -> None:
    shards, tokenizer = shards_of(SENTENCES)
    ids = tokenizer.encode(SENTENCES)
    counts = torch.ones(shards.vocabulary_size, shards.vocabulary_size)
    for before, after in zip(ids[:-1].tolist(), ids[1:].tolist(), strict=True):
        counts[before, after] += 1
    bigram = HandMade(lambda tokens: counts.log()[tokens], shards.vocabulary_size, 100)
    numbers = measured("minimal_pairs", trained(shards_of, model=bigram))["accuracy"]
    assert numbers["misplaced_punctuation"] == 1
    assert numbers["misspelt_word"] > 0.8


def test_longer_spellings_are_told_apart_from_grammar(shards_of: ShardsOf) -> None:
    """Over words, what is misspelt takes more tokens: a uniform model then gets pairs right that it
    knows nothing of.
    """
    vocabulary_size = shards_of(SENTENCES, tokenizer="word")[0].vocabulary_size
    numbers = measured(
        "minimal_pairs", trained(shards_of, model=uniform(vocabulary_size, 200), tokenizer="word")
    )
    assert numbers["by_length_alone"] == pytest.approx(numbers["mean"])
    assert numbers["accuracy"]["misspelt_word"] == 1


def test_blimp_is_scored_by_phenomenon(shards_of: ShardsOf, blimp: Path) -> None:
    shards, tokenizer = shards_of(SENTENCES + "We saw.", tokenizer="byte")
    run = trained(shards_of, model=uniform(shards.vocabulary_size, 100), tokenizer="byte")
    numbers = measured("blimp", run, folder=str(blimp), pairs=0)
    # to a uniform model the shorter sentence is the likelier: "sleep." and never "sleeps."
    assert numbers == {
        "mean": 0.5,
        "by_length_alone": 0.5,
        "pairs": 9,
        "accuracy": {"agreement": 0.5, "order": 0.5},
    }
    the = tokenizer.encode("t").tolist()[0]

    def expects_no_t(
        tokens: Tensor,
    ) -> Tensor:  # so that "cat the" and "the cat" still cost the same
        return -5.0 * (torch.arange(shards.vocabulary_size) == the).expand(*tokens.shape, -1)

    run = trained(
        shards_of, model=HandMade(expects_no_t, shards.vocabulary_size, 100), tokenizer="byte"
    )
    assert measured("blimp", run, folder=str(blimp), pairs=2)["accuracy"]["order"] == 0.5
    assert measured("blimp", run, folder=str(blimp), pairs=2)["pairs"] == 6


def test_files_that_are_not_blimps_are_refused_by_name(
    shards_of: ShardsOf, blimp: Path, tmp_path: Path
) -> None:
    (blimp / "two.jsonl").write_text('{"sentence_good": "x"}\n')
    with pytest.raises(UserError, match=r"two\.jsonl, line 1: no object with sentence_good"):
        measured("blimp", trained(shards_of), folder=str(blimp))
    with pytest.raises(UserError, match=r"measures\.blimp\.folder: '.*nowhere' is no folder"):
        measured("blimp", trained(shards_of), folder=str(tmp_path / "nowhere"))


# ---------------------------------------------------------------- the mixture with an n-gram


def test_half_of_each_probability_is_the_models_and_half_the_n_grams(shards_of: ShardsOf) -> None:
    text = "abcabcabd abcab"
    vocabulary_size = shards_of(SENTENCES, text)[0].vocabulary_size
    run = trained(shards_of, validation=text, model=uniform(vocabulary_size))
    stream = run.shards.stream("validation")
    counted = np.exp(-KneserNey(run.train, vocabulary_size, 3).nats(stream))[1:][
        stream[1:] != run.shards.bos
    ]
    bits = -np.log2(0.5 / vocabulary_size + 0.5 * counted).sum() / len(text)
    numbers = measured("n_gram_mixture", run, order=3)["validation"]
    assert numbers["bits_per_byte"] == pytest.approx(bits)
    assert numbers["saved"] == pytest.approx(
        min(math.log2(vocabulary_size), -np.log2(counted).sum() / len(text)) - bits
    )


def test_a_mixture_with_oneself_saves_nothing(shards_of: ShardsOf) -> None:
    shards, _ = shards_of(SENTENCES)
    ids = np.arange(shards.vocabulary_size)
    logits_V = torch.tensor(-KneserNey(shards.stream("train"), shards.vocabulary_size, 1).nats(ids))
    unigram = HandMade(lambda tokens: logits_V.expand(*tokens.shape, -1), shards.vocabulary_size, 8)
    numbers = measured("n_gram_mixture", trained(shards_of, model=unigram), order=1)["validation"]
    assert numbers["saved"] == pytest.approx(0, abs=1e-6)


# ---------------------------------------------------------------- character classes and entropy


def test_each_character_is_charged_to_its_class(shards_of: ShardsOf) -> None:
    text = "Ab c-d 12\n\té, it"
    shards, tokenizer = shards_of(text, text)
    run = trained(shards_of, text, text, uniform(shards.vocabulary_size, 16))
    rows = character_classes.table(
        run.scores["validation"], shards.stream("validation"), tokenizer.token_bytes
    )
    by_class = rows.set_index("class")
    assert by_class["bytes"].to_dict() == {
        "letter_at_word_start": 3,
        "letter_in_word": 2,
        "capital": 1,
        "digit": 2,
        "space": 4,
        "newline": 1,
        "punctuation": 2,
        "other": 2,
    }
    a_token = math.log(shards.vocabulary_size)
    assert by_class["nats_per_byte"].drop("other").tolist() == pytest.approx([a_token] * 7)
    assert by_class.loc["other", "nats_per_byte"] == pytest.approx(
        a_token / 2
    )  # one token of two bytes
    assert by_class["share_of_bytes"].sum() == pytest.approx(1)
    assert by_class["share_of_nats"].sum() == pytest.approx(1)


def test_a_token_of_several_characters_is_charged_to_its_first(shards_of: ShardsOf) -> None:
    run = trained(shards_of, tokenizer="bpe")
    token_bytes = run.tokenizer.token_bytes
    stream = run.shards.stream("validation")
    rows = character_classes.table(run.scores["validation"], stream, token_bytes).set_index("class")
    pieces = [token_bytes[token] for token in stream.tolist() if token_bytes[token]]
    assert any(len(piece) > 2 for piece in pieces)
    assert rows.loc["space", "bytes"] == sum(
        len(piece) for piece in pieces if piece.startswith(b" ")
    )
    assert rows["nats"].sum() == pytest.approx(run.scores["validation"].nats)
    assert rows["bytes"].sum() == len(SENTENCES)


def test_the_distance_to_the_entropy_of_the_source(shards_of: ShardsOf) -> None:
    vocabulary_size = shards_of(SENTENCES)[0].vocabulary_size
    run = trained(
        shards_of,
        test="The dog.",
        model=uniform(vocabulary_size),
        manifest=small.corpus_manifest(entropy_bits_per_byte=1.25),
    )
    numbers = measured("entropy_gap", run)
    assert numbers == {
        "validation": pytest.approx(math.log2(vocabulary_size) - 1.25),
        "test": pytest.approx(math.log2(vocabulary_size) - 1.25),
    }
    with pytest.raises(DoesNotApply, match="not known"):
        measured("entropy_gap", trained(shards_of, manifest=small.corpus_manifest()))


@pytest.mark.parametrize(("early", "late"), [(14, 1), (8, 8)])
def test_late_comes_after_early(early: int, late: int) -> None:
    with pytest.raises(
        UserError,
        match=rf"measures.context_gain.*late \({late}\) should come after early \({early}\)",
    ):
        chosen(small.tree(early=early, late=late), ["context_gain"])


def test_too_few_pairs_by_the_option_are_called_that(shards_of: ShardsOf) -> None:
    _, (line,) = measure_all(chosen(small.tree(pairs=5), ["minimal_pairs"]), trained(shards_of))
    assert line.endswith("(the option pairs allows 5)")


# ---------------------------------------------------------------- causal tracing


def test_a_clean_state_counts_where_it_is_read_and_nowhere_else(shards_of: ShardsOf) -> None:
    """The end's last output decides the prediction; the source's last output nothing."""
    model = small.rough(small.some_model(), vocabulary_size=26)
    run = trained(shards_of, model=model.float())
    numbers = measured("causal_tracing", run, distance=3)
    assert numbers["total_nats"] > 0
    last = str(len(model.blocks) - 1)
    ids = run.shards.stream("validation").astype(np.int64)
    starts = np.linspace(0, len(ids) - 8, numbers["windows"]).astype(int)
    tokens_BT = torch.from_numpy(np.stack([ids[start : start + 8] for start in starts]))
    rng = torch.Generator().manual_seed(small.tree()["measures"]["causal_tracing"]["seed"])
    with torch.no_grad():
        x_BTD = model.embed(tokens_BT)
        p_BV = model(tokens_BT)[:, -1].double().softmax(-1)
        noise_BD = torch.randn(len(x_BTD), x_BTD.shape[-1], generator=rng)
        x_BTD[:, 4] += 3 * x_BTD.std() * noise_BD  # three before the last of eight
        for block in model.blocks:
            x_BTD = block(x_BTD)
        q_BV = model.head(x_BTD)[:, -1].double().softmax(-1)
    nats_B = (p_BV * (p_BV / q_BV).log()).sum(-1)
    assert numbers["total_nats"] == pytest.approx(float(nats_B.mean()), rel=1e-4)
    assert numbers["at_end"][last] == 1.0
    assert numbers["at_source"][last] == pytest.approx(0.0, abs=1e-12)
    assert numbers["at_source"]["0"] != 0.0


def test_what_a_model_cannot_see_cannot_be_traced(shards_of: ShardsOf) -> None:
    """A perceptron that reads five tokens, and a token that far away and one further."""
    choice = registry.choose(small.tree(), "models", "perceptron")
    run = trained(shards_of, model=small.model(choice, vocabulary_size=26))
    numbers = measured("causal_tracing", run, distance=4)
    assert numbers["at_source"]["0"] == pytest.approx(0.0, abs=1e-9)  # only its first block reads
    assert numbers["at_end"] == {"0": 1.0, "1": 1.0}
    with pytest.raises(DoesNotApply, match="does not change what this model predicts"):
        measured("causal_tracing", run, distance=5)
    with pytest.raises(DoesNotApply, match="no window of validation has a token 8 before its last"):
        measured("causal_tracing", run, distance=8)
