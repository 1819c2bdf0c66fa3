"""The unigram language model against brute force over all ways to cut short words."""

import itertools
import math
from collections import Counter
from collections.abc import Iterator
from itertools import pairwise

import hostile
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from small import PROJECT

from lmlab.data import pretokens
from lmlab.data.tokenizers import unigram
from lmlab.data.tokenizers.base import BYTES
from lmlab.data.tokenizers.unigram import Lattice, Options, Unigram, maximised, viterbi

LOG = sorted((PROJECT / "docs" / "log").glob("2026-11-2[23]-*.md"))
REAL = "".join(path.read_text(encoding="utf-8") for path in LOG)

word = st.text("ab", min_size=1, max_size=8).map(str.encode)
SHORT = [
    bytes(letters) for length in (2, 3, 4, 5) for letters in itertools.product(b"ab", repeat=length)
]
pieces = st.lists(st.sampled_from(SHORT), unique=True, max_size=40).map(
    lambda more: [*BYTES, *more]
)
words = st.lists(word, unique=True, min_size=1, max_size=6)


def spellings(text: bytes, known: set[bytes]) -> Iterator[list[bytes]]:
    """Every way to cut the text into known pieces."""
    if not text:
        yield []
    for end in range(1, len(text) + 1):
        if text[:end] in known:
            for rest in spellings(text[end:], known):
                yield [text[:end], *rest]


def drawn_scores(number: int, seed: int) -> np.ndarray:
    shares = np.random.default_rng(seed).exponential(size=number) ** 3 + 1e-9
    return np.log(shares / shares.sum())


@given(text=word, known=pieces, seed=st.integers(0, 99))
def test_viterbi_finds_the_best_of_all_spellings(
    text: bytes, known: list[bytes], seed: int
) -> None:
    scores = dict(zip(known, drawn_scores(len(known), seed).tolist(), strict=True))
    found = viterbi(text, scores)
    assert b"".join(found) == text
    best = max(spellings(text, set(known)), key=lambda cut: sum(scores[piece] for piece in cut))
    assert found == best


@given(some=words, known=pieces, seed=st.integers(0, 99))
def test_forward_and_backward_sum_over_all_spellings(
    some: list[bytes], known: list[bytes], seed: int
) -> None:
    scores = drawn_scores(len(known), seed)
    counts = np.arange(1.0, len(some) + 1)
    used, likelihood = Lattice(some, known).expected(counts, scores)
    share = dict(zip(known, np.exp(scores).tolist(), strict=True))
    wanted: Counter[bytes] = Counter()
    wanted_likelihood = 0.0
    for text, count in zip(some, counts.tolist(), strict=True):
        weights = [
            (math.prod(share[piece] for piece in cut), cut) for cut in spellings(text, set(known))
        ]
        total = sum(weight for weight, _ in weights)
        wanted_likelihood += count * math.log(total)
        for weight, cut in weights:
            for piece in cut:
                wanted[piece] += count * weight / total
    assert likelihood == pytest.approx(wanted_likelihood)
    assert used.tolist() == pytest.approx([wanted[piece] for piece in known])
    assert used @ [len(piece) for piece in known] == pytest.approx(
        counts @ [len(text) for text in some]
    )


@given(known=pieces, seed=st.integers(0, 99))
def test_the_cost_of_a_lost_piece_is_that_of_its_spellings_by_others(
    known: list[bytes], seed: int
) -> None:
    scores = drawn_scores(len(known), seed)
    share = dict(zip(known, np.exp(scores).tolist(), strict=True))
    if len(known) > 256:
        others, _ = Lattice(known[256:], known, apart=True).log_likelihoods(scores)
        wanted = [
            math.log(
                sum(
                    math.prod(share[part] for part in cut)
                    for cut in spellings(piece, set(known) - {piece})
                )
            )
            for piece in known[256:]
        ]
        assert others.tolist() == pytest.approx(wanted)


@given(some=words, known=pieces, seed=st.integers(0, 99))
def test_a_step_of_expectation_maximisation_never_lowers_the_likelihood(
    some: list[bytes], known: list[bytes], seed: int
) -> None:
    lattice, counts = Lattice(some, known), np.arange(1.0, len(some) + 1)
    scores, likelihoods = drawn_scores(len(known), seed), []
    for _ in range(8):
        used, likelihood = lattice.expected(counts, scores)
        likelihoods.append(likelihood)
        scores = maximised(used)
    assert all(after >= before - 1e-9 * abs(before) for before, after in pairwise(likelihoods))


def test_steps_on_real_text_raise_the_likelihood() -> None:
    counted = pretokens.count([REAL])
    some, counts = (
        [text.encode() for text in counted],
        np.array(list(counted.values()), dtype=np.float64),
    )
    known, used = unigram.candidates(some, counts, BYTES, 2000)
    lattice = Lattice(some, known)
    likelihoods = []
    for _ in range(10):
        used, likelihood = lattice.expected(counts, maximised(used))
        likelihoods.append(likelihood)
    assert all(after > before for before, after in pairwise(likelihoods))


@given(some=words, known=pieces, seed=st.integers(0, 99))
def test_dropping_pieces_is_building_the_lattice_without_them(
    some: list[bytes], known: list[bytes], seed: int
) -> None:
    rng = np.random.default_rng(seed)
    kept = np.array(
        [*range(256), *(place for place in range(256, len(known)) if rng.random() < 0.5)]
    )
    counts, scores = np.arange(1.0, len(some) + 1), drawn_scores(len(kept), seed)
    dropped = Lattice(some, known)
    dropped.keep(kept)
    used, likelihood = dropped.expected(counts, scores)
    wanted, wanted_likelihood = Lattice(some, [known[place] for place in kept]).expected(
        counts, scores
    )
    assert used.tolist() == wanted.tolist()
    assert likelihood == wanted_likelihood


@pytest.mark.parametrize("vocabulary_size", [257, 300, 700])
def test_the_vocabulary_is_as_large_as_asked_and_its_probabilities_sum_to_one(
    vocabulary_size: int,
) -> None:
    tokenizer = Unigram.fit(Options(vocabulary_size=vocabulary_size), [REAL])
    assert tokenizer.vocabulary_size == vocabulary_size
    assert tokenizer.token_bytes[:256] == BYTES
    assert sum(map(math.exp, tokenizer.scores.values())) == pytest.approx(1)
    added = list(tokenizer.scores.values())[256:]
    assert added == sorted(added, reverse=True)


def test_more_pieces_make_shorter_texts_and_frequent_words_are_whole() -> None:
    sizes = [
        len(Unigram.fit(Options(vocabulary_size=vocabulary_size), [REAL]).encode(REAL))
        for vocabulary_size in (257, 300, 500, 900)
    ]
    assert sizes[0] == len(REAL.encode())
    assert sizes == sorted(sizes, reverse=True)
    tokenizer = Unigram.fit(Options(vocabulary_size=900), [REAL])
    for common in (" the", " and", " of"):
        assert len(tokenizer.encode(common)) == 1


def test_growing_keeps_the_old_pieces_and_learns_those_of_the_new_text() -> None:
    tokenizer = Unigram.fit(Options(vocabulary_size=500), [REAL])
    new = (
        "Arma virumque cano, Troiae qui primus ab oris Italiam fato profugus Laviniaque venit"
        " litora. " * 9
    )
    grown = tokenizer.grown([new], 40)
    assert grown.bos == 499
    assert grown.vocabulary_size == 540
    assert sum(map(math.exp, grown.scores.values())) == pytest.approx(1)
    assert len(grown.encode(new)) < len(tokenizer.encode(new)) / 2
    assert len(grown.encode(REAL)) < 1.02 * len(tokenizer.encode(REAL))


@given(given_texts=st.lists(hostile.texts, max_size=4))
def test_any_text_can_be_learned_from(given_texts: list[str]) -> None:
    tokenizer = Unigram.fit(Options(vocabulary_size=280), given_texts)
    assert 257 <= tokenizer.vocabulary_size <= 280
    assert sum(map(math.exp, tokenizer.scores.values())) == pytest.approx(1)
    for text in given_texts:
        assert tokenizer.decode(tokenizer.encode(text)) == text
