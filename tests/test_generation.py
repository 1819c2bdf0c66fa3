"""Generated ids follow the model, and their text comes in whole characters."""

from collections.abc import Iterator

import numpy as np
import pytest
import small
import torch
from small import CONTEXT

from lmlab.data.tokenizers.base import Tokenizer
from lmlab.data.tokenizers.byte import Byte
from lmlab.data.tokenizers.character import Character
from lmlab.model import generation
from lmlab.model.generation import sample_ids, sample_text
from lmlab.model.models.base import LanguageModel
from lmlab.model.truncation import Truncation


@pytest.fixture
def model() -> LanguageModel:
    return small.rough(small.some_model())


def test_temperature_zero_takes_the_likeliest_token_of_the_full_forward_pass(
    model: LanguageModel,
) -> None:
    seen = [3, 1, 4]
    for chosen in sample_ids(model, list(seen), CONTEXT - len(seen), 0, seed=0):
        assert chosen == int(model(torch.tensor([seen]))[0, -1].argmax())
        seen.append(chosen)
    assert len(seen) == CONTEXT


def test_ids_are_drawn_as_often_as_the_model_says(model: LanguageModel) -> None:
    expected = (model(torch.tensor([[3, 1]]))[0, -1] / 2).softmax(-1).detach().numpy()
    drawn = [next(sample_ids(model, [3, 1], 1, 2.0, seed)) for seed in range(500)]
    shares = np.bincount(drawn, minlength=small.VOCABULARY) / len(drawn)
    assert np.abs(shares - expected).max() < 4 * 0.5 / np.sqrt(len(drawn))


def test_ids_are_drawn_from_what_is_kept_and_as_often_as_its_share_says(
    model: LanguageModel,
) -> None:
    plain = model(torch.tensor([[3, 1]]))[0, -1].detach().double().softmax(-1)
    three = plain.topk(3).indices.tolist()
    drawn = [
        next(sample_ids(model, [3, 1], 1, 1.0, seed, Truncation(top_k=3))) for seed in range(500)
    ]
    assert set(drawn) <= set(three)
    expected = plain[three] / plain[three].sum()
    shares = torch.tensor([drawn.count(id_) / len(drawn) for id_ in three])
    assert (shares - expected).abs().max() < 4 * 0.5 / np.sqrt(len(drawn))


def test_a_truncation_that_keeps_all_draws_the_same(model: LanguageModel) -> None:
    plain = list(sample_ids(model, [0], 30, 1.0, seed=1))
    assert list(sample_ids(model, [0], 30, 1.0, seed=1, truncation=Truncation())) == plain


@pytest.mark.parametrize(
    ("pieces", "end", "text"),
    [
        (["ab", "c\n", "\nd"], "\n\n", "abc"),
        (["abc"], "x", "abc"),
        (["a", "a", "b", "a", "b"], "ab", "a"),
        (["aab", "aac"], "aac", "aab"),
        (["x"], "x", ""),
        ([], "x", ""),
        (["aa", "a"], "aab", "aaa"),
    ],
)
def test_a_text_ends_where_its_end_first_occurs(pieces: list[str], end: str, text: str) -> None:
    asked: list[str] = []

    def growing() -> Iterator[str]:
        for piece in pieces:
            asked.append(piece)
            yield piece

    assert "".join(generation.up_to(growing(), end)) == text
    if end in "".join(pieces):  # nothing is generated that is not needed
        assert end not in "".join(asked[:-1])
        assert end in "".join(asked)


def test_the_seed_alone_decides(model: LanguageModel) -> None:
    before = torch.get_rng_state()
    one = list(sample_ids(model, [0], 30, 1.0, seed=1))
    torch.rand(3)
    assert list(sample_ids(model, [0], 30, 1.0, seed=1)) == one
    assert list(sample_ids(model, [0], 30, 1.0, seed=2)) != one
    torch.set_rng_state(before)
    list(sample_ids(model, [0], 3, 1.0, seed=1))
    assert torch.equal(
        torch.get_rng_state(), before
    )  # so a sample changes nothing of a training run


def test_a_low_temperature_comes_down_to_the_likeliest(model: LanguageModel) -> None:
    likeliest = list(sample_ids(model, [0], 20, 0, seed=0))
    for temperature in (1e-3, 1e-40, 5e-324):
        assert list(sample_ids(model, [0], 20, temperature, seed=0)) == likeliest


def test_a_prompt_longer_than_the_context_is_read_from_its_end(model: LanguageModel) -> None:
    prompt = small.tokens(1, 3 * CONTEXT)[0].tolist()
    long = list(sample_ids(model, prompt, 12, 0.9, seed=0))
    assert long == list(sample_ids(model, prompt[-CONTEXT:], 12, 0.9, seed=0))
    assert len(long) == 12


@pytest.mark.parametrize("training", [True, False])
def test_generation_leaves_the_mode_as_it_was_also_when_it_is_left_early(training: bool) -> None:
    model = small.model(small.some_model(dropout=0.5)).train(training)
    for _ in sample_ids(model, [0], 10, 1.0, seed=0):
        break
    assert model.training == training
    assert list(sample_ids(model, [0], 10, 1.0, seed=0)) == list(
        sample_ids(model, [0], 10, 1.0, seed=0)
    )
    assert model.training == training


@pytest.mark.parametrize("temperature", [0, 1.0])
def test_a_model_that_has_diverged_is_not_sampled_from(
    model: LanguageModel, temperature: float
) -> None:
    model.readout.weight.data[2] = float("nan")
    with pytest.raises(FloatingPointError):
        next(sample_ids(model, [0], 1, temperature, seed=0))


# ---------------------------------------------------------------- text


def text_of(ids: list[int], tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What is shown of a model that says `ids`, piece by piece."""

    def says(model: LanguageModel, prompt: list[int], count: int, *_: object) -> Iterator[int]:
        yield from ids[:count]

    monkeypatch.setattr(generation, "sample_ids", says)
    return list(sample_text(None, tokenizer, "", 1000, 1.0, 0))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "text", ["naïve Café, 5 €, \U0001f600!", "äöü" * 20, "plain", "", "ends in a \ufffd"]
)
def test_a_character_of_several_bytes_is_never_shown_in_halves(
    text: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    tokenizer = Byte()
    pieces = text_of(tokenizer.encode(text).tolist(), tokenizer, monkeypatch)
    assert "".join(pieces) == text
    assert text.endswith("\ufffd") or pieces == list(text)  # and none waits longer than it must


@pytest.mark.parametrize("known", ["a", "ab", "abcdefgh"])
def test_a_character_that_is_spelled_out_is_shown_when_it_is_whole(
    known: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    tokenizer = Character(sorted(known))
    text = "aé\U0001f600a€"
    assert text_of(tokenizer.encode(text).tolist(), tokenizer, monkeypatch) == list(text)


def test_bytes_that_are_no_text_are_shown_all_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    tokenizer = Byte()
    assert "".join(text_of([0xFF] * 100 + [65], tokenizer, monkeypatch)) == "\ufffd" * 100 + "A"
    assert (
        "".join(text_of([65, 0xC3], tokenizer, monkeypatch)) == "A\ufffd"
    )  # cut off by the number of tokens


def test_text_ends_where_a_document_does(monkeypatch: pytest.MonkeyPatch) -> None:
    tokenizer = Byte()
    assert "".join(text_of([65, 66, tokenizer.bos, 67], tokenizer, monkeypatch)) == "AB"
    assert text_of([tokenizer.bos], tokenizer, monkeypatch) == []


def test_whatever_a_model_says_can_be_written_down() -> None:
    # two known characters are spelled in base 3, so a random model often spells code points that
    # are no characters
    tokenizer = Character(["a", "b"])
    model = small.model(small.some_model(), vocabulary_size=tokenizer.vocabulary_size)
    for seed in range(5):
        pieces = list(sample_text(model, tokenizer, "é", 300, 1.0, seed))
        "".join(pieces).encode("utf-8")


def test_a_prompt_begins_a_document(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[list[int]] = []

    def listens(model: LanguageModel, prompt: list[int], *_: object) -> Iterator[int]:
        asked.append(prompt)
        return iter([])

    monkeypatch.setattr(generation, "sample_ids", listens)
    tokenizer = Byte()
    for prompt in ("AB", ""):
        list(sample_text(None, tokenizer, prompt, 1, 1.0, 0))  # type: ignore[arg-type]
    assert asked == [[tokenizer.bos, 65, 66], [tokenizer.bos]]


def test_several_texts_at_once_are_drawn_as_one_is() -> None:
    model = small.rough(small.some_model(dropout=0.5)).train()
    alone = list(generation.sample_ids(model, [3], 20, 0, seed=1))
    assert generation.sample_rows(model, 2, 3, 20, 0, seed=5).tolist() == [
        alone,
        alone,
    ]  # the likeliest, beyond the context
    drawn = generation.sample_rows(model, 3, 3, 20, 1.0, seed=5)
    assert torch.equal(drawn, generation.sample_rows(model, 3, 3, 20, 1.0, seed=5))
    assert len({tuple(row) for row in drawn.tolist()}) == 3
    assert model.training
    with torch.no_grad():
        shares = model.eval()(torch.tensor([[3]]))[0, -1].softmax(-1)
    first = generation.sample_rows(model, 4000, 3, 1, 1.0, seed=0)[:, 0]
    assert torch.allclose(
        torch.bincount(first, minlength=small.VOCABULARY) / 4000, shares.float(), atol=0.03
    )
