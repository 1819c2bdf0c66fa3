"""Byte-pair encoding: the quick ways give what the plain ones do, and what other people's code
does.
"""

import random
from collections import Counter
from pathlib import Path

import hostile
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer as TheirTokenizer
from tokenizers import models, pre_tokenizers, trainers

from lmlab.data import pretokens
from lmlab.data.tokenizers import bpe
from lmlab.data.tokenizers.bpe import BPE, Options

PROJECT = Path(__file__).parent.parent
LOG = sorted((PROJECT / "docs" / "log").glob("2026-*.md"))
REAL = "".join(path.read_text(encoding="utf-8") for path in LOG)
few_letters = st.text("ab c", max_size=60)
texts = st.lists(st.one_of(few_letters, hostile.texts), max_size=6)


def fitted(text: str, vocabulary_size: int) -> BPE:
    return BPE.fit(Options(vocabulary_size=vocabulary_size), [text])


REAL_BPE = fitted(REAL, 900)


def test_a_case_worked_by_hand() -> None:
    # aaab aab ab: (a,a) occurs 2+1+0 times, (a,b) 3 times; a tie, and (a,a) has the smaller ids.
    # Then (X,a) 1, (a,b) 2 (in aaab after Xa, and in ab), (X,b) 1: (a,b) is merged; then X before
    # it once only, and nothing else twice.
    tokenizer = fitted("aaab\naab\nab\n", 300)
    assert tokenizer.token_bytes[256:] == [b"aa", b"ab", b""]
    assert tokenizer.encode("aaab").tolist() == [256, 257]
    assert tokenizer.encode("aab").tolist() == [256, ord("b")]
    assert tokenizer.encode("caaa").tolist() == [ord("c"), 256, ord("a")]


@given(given_texts=texts, most=st.integers(0, 40))
def test_the_quick_trainer_learns_what_the_plain_one_does(
    given_texts: list[str], most: int
) -> None:
    words = bpe.spelled_in_bytes(pretokens.count(given_texts))
    assert bpe.merges(words, 256, most) == bpe.plain_merges(words, 256, most)


def test_the_quick_trainer_learns_what_the_plain_one_does_from_real_text() -> None:
    words = bpe.spelled_in_bytes(pretokens.count([REAL]))
    assert bpe.merges(words, 256, 200) == bpe.plain_merges(words, 256, 200)


def theirs(counts: Counter[str], vocabulary_size: int) -> list[bytes]:
    """What the package `tokenizers` learns: bytes are written as characters in the order of their
    values.
    """
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary_size,
        min_frequency=bpe.FEWEST,
        show_progress=False,
        initial_alphabet=[chr(0x100 + b) for b in range(256)],
    )
    made = TheirTokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.CharDelimiterSplit(" ")
    lines = [
        " ".join(["".join(chr(0x100 + b) for b in word.encode())] * count)
        for word, count in counts.items()
    ]
    made.train_from_iterator(lines, trainer)
    tokens = sorted(made.get_vocab().items(), key=lambda item: item[1])
    return [bytes(ord(character) - 0x100 for character in token) for token, _ in tokens]


@pytest.mark.parametrize("vocabulary_size", [300, 700, 100_000])
def test_the_pieces_are_those_of_the_package_tokenizers(vocabulary_size: int) -> None:
    tokenizer = fitted(REAL, vocabulary_size)
    assert tokenizer.token_bytes[:-1] == theirs(pretokens.count([REAL]), vocabulary_size - 1)


@given(given_texts=texts)
def test_the_pieces_of_any_text_are_those_of_the_package_tokenizers(given_texts: list[str]) -> None:
    tokenizer = BPE.fit(Options(vocabulary_size=290), given_texts)
    assert tokenizer.token_bytes[:-1] == theirs(pretokens.count(given_texts), 289)


def check_encoding(tokenizer: BPE, text: str) -> None:
    plain = [
        token
        for word in pretokens.split(text)
        for token in bpe.plain_encode(word.encode(), tokenizer.merges)
    ]
    assert tokenizer.encode(text).tolist() == plain


@given(text=hostile.texts, sample=st.text("aabb ", min_size=20), more=st.text("aab cd"))
def test_tiktoken_encodes_as_the_plain_encoder_does(text: str, sample: str, more: str) -> None:
    own = fitted(sample, 270)
    for tokenizer in (REAL_BPE, own, own.grown([more * 2], 5)):
        check_encoding(tokenizer, text)
        check_encoding(tokenizer, sample + more)


def test_tiktoken_encodes_real_and_long_texts_as_the_plain_encoder_does() -> None:
    check_encoding(REAL_BPE, REAL)
    shuffled = list(REAL)
    random.Random(0).shuffle(shuffled)
    check_encoding(REAL_BPE, "".join(shuffled))
    for text in hostile.LONG.values():
        check_encoding(REAL_BPE, text[:5000])


def test_growing_on_the_same_text_learns_what_fitting_in_one_go_would() -> None:
    small, large = fitted(REAL, 400), fitted(REAL, 600)
    grown = small.grown([REAL], 200)
    assert (grown.bos, large.bos) == (399, 599)
    assert grown.token_bytes == [*small.token_bytes, *large.token_bytes[399:599]]
    ids = large.encode(REAL)
    np.testing.assert_array_equal(grown.encode(REAL), np.where(ids >= 399, ids + 1, ids))


@given(old=few_letters, new=few_letters, most=st.integers(0, 10))
def test_growing_goes_on_as_the_plain_trainer_would_from_text_spelled_so_far(
    old: str, new: str, most: int
) -> None:
    tokenizer = fitted(old, 270)
    counts = pretokens.count([new])
    words = [
        (bpe.plain_encode(word.encode(), tokenizer.merges), count) for word, count in counts.items()
    ]
    learned = bpe.plain_merges(words, tokenizer.vocabulary_size, most)
    grown = tokenizer.grown([new], most)
    assert list(grown.merges) == [*tokenizer.merges, *learned]
    assert list(grown.merges.values())[len(tokenizer.merges) :] == [
        tokenizer.vocabulary_size + n for n in range(len(learned))
    ]


def test_a_text_that_runs_out_of_pairs_gives_fewer_ids() -> None:
    assert fitted("abcd", 1000).vocabulary_size == 257
    assert fitted("abab abab", 1000).vocabulary_size == 257 + 2  # ab, abab; " abab" occurs once
    assert fitted("", 257).vocabulary_size == 257
