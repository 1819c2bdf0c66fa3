"""What a teacher says of a text in other tokens: the exact probability of each chunk."""

import math
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import small
import test_training
import torch
from test_continuing import start_from, state, train
from test_training import Corpus
from torch import Tensor

from lmlab.core import registry
from lmlab.data.tokenizers import base as tokenizers
from lmlab.data.tokenizers.base import Tokenizer
from lmlab.model.models.base import LanguageModel, next_token_loss
from lmlab.training.distilling import NONE, Teacher
from lmlab.training.learning_rules.distillation import Distillation, Options, divergence

corpus = test_training.corpus  # the fixture
TEXT = "the cat sat on the mat, 12 times. Né, \U0001f600 à la carte; the dog ate it. " * 3


def fitted(name: str, **changes: Any) -> Tokenizer:
    choice = registry.choose(small.tree(vocabulary_size=300, **changes), "tokenizers", name)
    return tokenizers.fit(choice, [TEXT])


NAMES = ("byte", "character", "bpe", "word", "unigram")
FITTED = {name: fitted(name) for name in NAMES}
PAIRS = [(old, new) for old in NAMES for new in NAMES]


def model_of(tokenizer: Tokenizer, context: int = 8, seed: int = 0) -> LanguageModel:
    return small.rough(small.some_model(), seed, tokenizer.vocabulary_size, context)


def window(tokenizer: Tokenizer, *texts: str) -> tuple[Tensor, Tensor]:
    """One row that holds several documents."""
    ids = [id_ for text in texts for id_ in (tokenizer.bos, *tokenizer.encode(text).tolist())]
    row = torch.tensor([ids])
    return row[:, :-1], row[:, 1:]


def nats_of(model: LanguageModel, tokens_BT: Tensor, targets_BT: Tensor) -> Tensor:
    log_BTV = model(tokens_BT).double().log_softmax(-1)
    return -log_BTV.gather(-1, targets_BT[..., None])[..., 0].detach()


def spelling(tokenizer: Tokenizer, ids: list[int]) -> bytes:
    return b"".join(b"|" if id_ == tokenizer.bos else tokenizer.token_bytes[id_] for id_ in ids)


@pytest.mark.parametrize(("old", "new"), PAIRS)
def test_chunks_are_the_finest_common_pieces_with_the_teacher_s_exact_probability(
    old: str, new: str
) -> None:
    """Found again by going through both texts by hand."""
    texts = ["the cat sat", "on the mat, 12 times", "Né, à la carte"]
    own, learner = FITTED[old], FITTED[new]
    model = model_of(own, context=200)
    tokens_BT, targets_BT = window(learner, *texts)
    chunks = Teacher(model, own, learner).chunks(tokens_BT, targets_BT)
    old_tokens, old_targets = window(own, *texts)
    nats_T = nats_of(model, old_tokens, old_targets)[0]

    of_old = np.cumsum([len(spelling(own, [id_])) for id_ in old_targets[0].tolist()])
    of_new = np.cumsum([len(spelling(learner, [id_])) for id_ in targets_BT[0].tolist()])
    cuts = sorted({0} | (set(of_old.tolist()) & set(of_new.tolist())))
    expected = [
        float(nats_T[(of_old > begin) & (of_old <= end)].sum()) for begin, end in pairwise(cuts)
    ]
    numbers = np.searchsorted(cuts, of_new, side="left") - 1
    assert chunks.of_targets[0].tolist() == numbers.tolist()
    torch.testing.assert_close(chunks.nats, torch.tensor(expected, dtype=torch.float64))
    assert len(expected) > 10


def test_a_character_model_gives_every_token_its_exact_probability() -> None:
    own, learner = FITTED["character"], FITTED["bpe"]
    tokens_BT, targets_BT = window(learner, "the cat sat on the mat")
    chunks = Teacher(model_of(own, 100), own, learner).chunks(tokens_BT, targets_BT)
    assert chunks.of_targets[0].tolist() == list(range(targets_BT.shape[1]))
    whole = nats_of(model_of(own, 100), *window(own, "the cat sat on the mat"))
    assert math.isclose(float(chunks.nats.sum()), float(whole.sum()), rel_tol=1e-12)


def test_a_text_longer_than_the_teacher_s_context_is_read_in_windows_that_overlap_by_half() -> None:
    own = FITTED["character"]
    model = model_of(own, context=8)
    tokens_BT, targets_BT = window(own, TEXT[:50])
    chunks = Teacher(model, own, own).chunks(tokens_BT, targets_BT)
    for at in (0, 7, 8, 30, targets_BT.shape[1] - 1):
        start = 0 if at < 8 else min((at - 8) // 4 * 4 + 4, targets_BT.shape[1] - 8)
        read = slice(start, at + 1)
        alone = nats_of(model, tokens_BT[:, read], targets_BT[:, read])[0, -1]
        assert math.isclose(float(chunks.nats[at]), float(alone), rel_tol=1e-9)


def test_the_first_token_of_a_window_and_a_character_cut_in_two_are_in_no_chunk() -> None:
    own, learner = FITTED["character"], FITTED["byte"]
    _, whole = window(learner, "né \U0001f600s")  # n, 2 bytes, a space, 4 bytes, s
    row = whole[:, 2:7]  # the second byte of é, the space, three bytes of the emoji
    chunks = Teacher(model_of(own), own, learner).chunks(row[:, :-1], row[:, 1:])
    assert chunks.of_targets[0].tolist() == [NONE] * 4
    assert len(chunks.nats) == 0
    row = whole[:, 2:]
    chunks = Teacher(model_of(own), own, learner).chunks(row[:, :-1], row[:, 1:])
    assert chunks.of_targets[0].tolist() == [NONE, 0, 0, 0, 0, 1]


def test_text_that_the_teacher_cannot_spell_is_in_no_chunk() -> None:
    own, learner = FITTED["character"], FITTED["byte"]
    tokens_BT, targets_BT = window(learner, "a cat ☃ sat")
    both = [torch.cat((each, each)) for each in (tokens_BT, targets_BT)]
    plain, _ = window(learner, "the cat sat")
    chunks = Teacher(model_of(own), own, learner).chunks(*both)
    known = Teacher(model_of(own), own, learner).chunks(plain[:, :-1], plain[:, 1:])
    assert len(known.nats) > 0
    spelled = own.encode("a cat ☃ sat").tolist()
    if spelling(own, spelled) != "a cat ☃ sat".encode() or any(
        not own.token_bytes[id_] for id_ in spelled
    ):
        assert (chunks.of_targets == NONE).all()


# ---------------------------------------------------------------- the loss


def rule_of(model: LanguageModel, **options: float) -> Distillation:
    return Distillation(Options(**{"share": 0.5, "temperature": 100.0, **options}), model)


def test_divergence_is_that_of_two_coins_and_its_limit_is_known() -> None:
    teacher_C, own_C = (
        torch.tensor([0.1, 2.0, 5.0, 3.0]).double(),
        torch.tensor([0.3, 1.0, 9.0, 3.0]),
    )
    own_C = own_C.double().requires_grad_()
    p, q = (torch.stack([(-x).exp(), 1 - (-x).exp()]) for x in (teacher_C, own_C))
    torch.testing.assert_close(divergence(teacher_C, own_C, 1.0), (p * (p / q).log()).sum(0))
    high = divergence(teacher_C, own_C, 1e6)
    limit = teacher_C * (teacher_C / own_C).log() + own_C - teacher_C
    torch.testing.assert_close(high, limit, rtol=1e-4, atol=1e-6)
    (slope,) = torch.autograd.grad(high.sum(), own_C)
    torch.testing.assert_close(slope, 1 - teacher_C / own_C.detach(), rtol=1e-4, atol=1e-5)
    extreme = torch.tensor([0.0, math.inf, 1e9]).double()
    assert divergence(extreme, extreme.flip(0), 100.0).isfinite().all()


def test_a_model_is_taught_nothing_by_itself() -> None:
    tokenizer = FITTED["bpe"]
    model = model_of(tokenizer, context=64).train()
    rule = rule_of(model, share=1.0)
    rule.teacher = Teacher(model_of(tokenizer, context=64), tokenizer, tokenizer)
    tokens_BT, targets_BT = window(tokenizer, "the cat sat on the mat")
    loss = rule.assign_gradients(model, tokens_BT, targets_BT)
    assert math.isclose(float(loss), float(next_token_loss(model(tokens_BT), targets_BT)))
    for parameter in model.parameters():
        assert parameter.grad is not None
        assert parameter.grad.abs().max() < 1e-10


@pytest.mark.parametrize("share", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("old", ["character", "word"])
def test_the_gradient_is_that_of_the_loss_written_out(share: float, old: str) -> None:
    own, learner = FITTED[old], FITTED["bpe"]
    teacher = Teacher(model_of(own, 100), own, learner)
    tokens_BT, targets_BT = window(learner, "the cat sat on the mat, 12 times")
    tokens_BT, targets_BT = tokens_BT[:, 2:], targets_BT[:, 2:]  # some targets are in no chunk
    model = model_of(learner, context=64).train()
    rule = rule_of(model, share=share, temperature=5.0)
    rule.teacher = teacher
    rule.assign_gradients(model, tokens_BT, targets_BT)

    chunks = teacher.chunks(tokens_BT, targets_BT)
    log_TV = model(tokens_BT)[0].log_softmax(-1)
    nats_T = -log_TV.gather(-1, targets_BT[0][:, None])[:, 0]
    total = torch.zeros((), dtype=torch.float64)
    for number, nats in zip(chunks.of_targets[0].tolist(), nats_T, strict=True):
        total = total + nats * (1.0 if number == NONE else 1 - share)
    for number, known in enumerate(chunks.nats):
        own_nats = nats_T[chunks.of_targets[0] == number].sum()
        p, q = (-known / 5).exp(), (-own_nats / 5).exp()
        coin = p * (p / q).log() + (1 - p) * ((1 - p) / (1 - q)).log()
        total = total + share * 5 * coin
    parameters = list(model.parameters())
    gradients = torch.autograd.grad(total / len(nats_T), parameters)
    for parameter, gradient in zip(parameters, gradients, strict=True):
        torch.testing.assert_close(parameter.grad, gradient, rtol=1e-6, atol=1e-10)


# ---------------------------------------------------------------- in a run


def test_a_run_learns_from_the_one_it_goes_on_from(
    corpus: Corpus, shards_of: small.ShardsOf
) -> None:
    train(corpus, "first")
    folder = Path("first/tokenizer")
    folder.mkdir()
    tokenizers.write("character", corpus[1], folder / "tokenizer.json")
    other = shards_of(test_training.TEXT, "12 times 12 is 144.\n", tokenizer="bpe")
    start = replace(
        start_from("first"), migration=registry.choose(small.tree(), "migrations", "spelled")
    )
    plain = train(other, "plain", start)
    distilled, again = (
        train(other, name, start, learning_rule="distillation") for name in ("distilled", "again")
    )
    assert distilled.weights_sha256 != plain.weights_sha256
    assert again.weights_sha256 == distilled.weights_sha256
    assert state("distilled")["rule"] == {}
    alone = train(other, "alone", start, learning_rule="distillation", share=0.0)
    assert alone.weights_sha256 == plain.weights_sha256
