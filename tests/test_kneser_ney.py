"""Tests of the Kneser-Ney model against its definition, in exact fractions and plain
dictionaries.
"""

from collections import Counter, defaultdict
from fractions import Fraction
from itertools import product

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lmlab.evaluation.kneser_ney import KneserNey

TextModel = tuple[list[int], int]


@st.composite
def texts(draw: st.DrawFn) -> TextModel:
    vocabulary_size = draw(st.integers(1, 3))
    return draw(
        st.lists(st.integers(0, vocabulary_size - 1), min_size=1, max_size=60)
    ), vocabulary_size


def skewed_ids(seed: int, size: int, vocabulary_size: int) -> npt.NDArray[np.int64]:
    """Random ids with a few frequent and many rare ones, so that counts 1, 2, 3 and 4 all occur."""
    weights = 1.0 / np.arange(1, vocabulary_size + 1) ** 1.3
    return np.random.default_rng(seed).choice(vocabulary_size, size=size, p=weights / weights.sum())


class Definition:
    """The formulas read literally: one dictionary per order, exact fractions, no shared code."""

    def __init__(self, text: list[int], vocabulary_size: int, order: int) -> None:
        self.vocabulary_size = vocabulary_size
        self.counts: list[dict[tuple[int, ...], int]] = []
        self.discounts: list[list[Fraction]] = []
        self.estimated: list[bool] = []
        for k in range(1, order + 1):
            places = [(start, tuple(text[start : start + k])) for start in range(len(text) - k + 1)]
            if k == order:
                self.counts.append(Counter(gram for _, gram in places))
            else:
                left: dict[tuple[int, ...], set[int | str]] = defaultdict(set)
                for start, gram in places:
                    left[gram].add(text[start - 1] if start > 0 else "start of text")
                self.counts.append({gram: len(symbols) for gram, symbols in left.items()})
            n = Counter(self.counts[-1].values())
            fallback = [Fraction(1, 2), Fraction(1), Fraction(3, 2)]
            estimates = []
            if n[1] and n[2] and n[3]:
                y = Fraction(n[1], n[1] + 2 * n[2])
                estimates = [
                    count - (count + 1) * y * n[count + 1] / n[count] for count in (1, 2, 3)
                ]
            self.estimated.append(bool(estimates) and all(estimate > 0 for estimate in estimates))
            self.discounts.append([Fraction(0), *(estimates if self.estimated[-1] else fallback)])

    def probability(self, token: int, context: tuple[int, ...]) -> Fraction:
        lower = (
            Fraction(1, self.vocabulary_size)
            if not context
            else self.probability(token, context[1:])
        )
        counts, discounts = self.counts[len(context)], self.discounts[len(context)]
        followers = [counts.get((*context, other), 0) for other in range(self.vocabulary_size)]
        if sum(followers) == 0:
            return lower
        removed = sum(discounts[min(count, 3)] for count in followers)
        kept = followers[token] - discounts[min(followers[token], 3)]
        return (kept + removed * lower) / sum(followers)


def definition_nats(model: Definition, text: list[int], order: int) -> list[float]:
    contexts = [tuple(text[max(0, i - order + 1) : i]) for i in range(len(text))]
    pairs = zip(text, contexts, strict=True)
    return [-float(np.log(float(model.probability(token, context)))) for token, context in pairs]


@settings(max_examples=60, deadline=None)
@given(text=texts(), order=st.integers(1, 4))
def test_every_conditional_distribution_is_positive_and_sums_to_one(
    text: TextModel, order: int
) -> None:
    ids, vocabulary_size = text
    model = KneserNey(np.array(ids), vocabulary_size, order)
    for length in range(order):
        for context in product(range(vocabulary_size), repeat=length):
            last = [model.nats(np.array([*context, token]))[-1] for token in range(vocabulary_size)]
            assert np.all(np.isfinite(last))
            assert np.exp(-np.array(last)).sum() == pytest.approx(1.0, abs=1e-12)


@pytest.mark.parametrize("order", [2, 3, 4])
def test_sums_to_one_where_the_discounts_are_estimated(order: int) -> None:
    ids = skewed_ids(0, 400, 12)
    assert any(Definition(ids.tolist(), 12, order).estimated)
    model = KneserNey(ids, 12, order)
    for context in (ids[20:23], ids[-3:], np.array([11, 11, 11])):
        last = [model.nats(np.append(context, token))[-1] for token in range(12)]
        assert np.exp(-np.array(last)).sum() == pytest.approx(1.0, abs=1e-12)


def test_worked_by_hand() -> None:
    # Training text 0 0 1, order 2, vocabulary 3. Too few counts for estimates: discounts 1/2 and 1.
    # Left extensions: 0 has {start, 0}, 1 has {0}. p(0) = 1/3 + 1/2 * 1/3, p(1) = 1/6 + 1/6, p(2) =
    # 1/6. After 0, which was followed by 0 once and by 1 once: p(w | 0) = (1/2) / 2 if seen, + 1/2
    # p(w). Nothing followed 1 and 2 never occurred, so both leave p(w) as it is.
    model = KneserNey(np.array([0, 0, 1]), 3, 2)
    expected = [1 / 2, 1 / 2, 5 / 12, 1 / 6, 1 / 3, 1 / 2, 1 / 12]
    np.testing.assert_allclose(
        np.exp(-model.nats(np.array([0, 0, 1, 2, 1, 0, 2]))), expected, rtol=1e-14
    )


@settings(max_examples=60, deadline=None)
@given(text=texts(), order=st.integers(1, 5), data=st.data())
def test_agrees_with_the_definition(text: TextModel, order: int, data: st.DataObject) -> None:
    ids, vocabulary_size = text
    scored = data.draw(st.lists(st.integers(0, vocabulary_size - 1), max_size=20))
    nats = KneserNey(np.array(ids), vocabulary_size, order).nats(np.array(scored, dtype=np.int64))
    expected = definition_nats(Definition(ids, vocabulary_size, order), scored, order)
    np.testing.assert_allclose(nats, expected, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("order", [1, 2, 3, 5])
def test_agrees_with_the_definition_where_the_discounts_are_estimated(order: int) -> None:
    train, scored = skewed_ids(1, 600, 30), skewed_ids(2, 80, 30)
    definition = Definition(train.tolist(), 30, order)
    assert any(definition.estimated)
    nats = KneserNey(train.astype(np.uint8), 30, order).nats(scored.astype(np.uint16))
    np.testing.assert_allclose(
        nats, definition_nats(definition, scored.tolist(), order), rtol=1e-10
    )


def test_order_one_on_uniform_data_is_uniform() -> None:
    ids = np.tile(np.arange(50), 20)
    np.testing.assert_allclose(KneserNey(ids, 50, 1).nats(np.arange(50)), np.log(50), rtol=1e-12)


@pytest.mark.parametrize("order", [2, 5, 10])
def test_a_repeated_pattern_is_predicted_nearly_surely(order: int) -> None:
    pattern = np.array([3, 0, 49_999, 7, 1, 12_345])
    nats = KneserNey(np.tile(pattern, 500), 50_000, order).nats(np.tile(pattern, 5))
    assert nats[order - 1 :].max() < 0.01


@given(position=st.integers(0, 99), token=st.integers(0, 11), order=st.integers(1, 6))
def test_future_tokens_are_not_used(position: int, token: int, order: int) -> None:
    model = KneserNey(skewed_ids(3, 400, 12), 12, order)
    scored = skewed_ids(4, 100, 12)
    changed = scored.copy()
    changed[position] = token
    before, after = model.nats(scored), model.nats(changed)
    np.testing.assert_array_equal(before[:position], after[:position])
    # A context reaches back order - 1 tokens and no further.
    np.testing.assert_array_equal(before[position + order :], after[position + order :])


def test_refuses_what_it_cannot_fit() -> None:
    ids = np.array([0, 1])
    with pytest.raises(TypeError):
        KneserNey(np.array([0.0, 1.0]), 2, 2)
    for tokens, vocabulary_size, order in (
        (ids, 1, 2),
        (-ids, 2, 2),
        (ids[:0], 2, 2),
        (ids[None], 2, 2),
        (ids, 0, 2),
        (ids, 2, 0),
    ):
        with pytest.raises(ValueError, match=r"at least 1|empty|1-D|must lie in"):
            KneserNey(tokens, vocabulary_size, order)
    for unknown in (-1, 2):
        with pytest.raises(ValueError, match="must lie in"):
            KneserNey(ids, 2, 2).nats(np.array([unknown]))
