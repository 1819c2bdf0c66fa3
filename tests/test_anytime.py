"""The test that may be looked at as often as one likes: by hand, and looked at after every seed."""

import math

import numpy as np
import pytest

from lmlab.experiments.compare import anytime
from lmlab.experiments.compare.permutation import permute


def test_the_stake_by_hand() -> None:
    # the mean over Beta(1/2, 1/2) of (2 q)^n (2 (1 - q))^m: 2 * 1/2, 4 * 3/8, 4 * 1/8, 8 * 5/16
    assert [
        anytime.e_value(*counts) for counts in ((0, 0), (1, 0), (2, 0), (1, 1), (0, 3))
    ] == pytest.approx([1, 1, 1.5, 0.5, 2.5])
    assert anytime.least(0.05) == 7
    assert anytime.e_value(7, 0) >= 20 > anytime.e_value(6, 0)


def test_equal_variants_looked_at_after_every_seed_are_told_apart_no_more_often_than_promised() -> (
    None
):
    """The permutation test, looked at as often, is wrong three times as often as it promises for
    one look.
    """
    rng = np.random.default_rng(0)
    draws, seeds = 300, 20
    wrong = {"any time": 0, "once": 0}
    for differences in rng.normal(size=(draws, seeds)):
        looks = range(6, seeds + 1)
        wrong["any time"] += any(anytime.sign_test(differences[:seen]) <= 0.05 for seen in looks)
        wrong["once"] += any(
            permute(differences[:seen], 0.0)[0] <= 0.05 for seen in (6, 8, 10, 12, 14)
        )
    assert wrong["any time"] <= 0.05 * draws
    assert wrong["once"] > 0.08 * draws


def test_the_interval_holds_the_medians_that_are_not_rejected() -> None:
    differences = np.random.default_rng(1).normal(1, 1, size=15)
    low, high = anytime.interval(differences, 0.05)
    just = 1e-9
    for median, rejected in (
        (low - just, True),
        (low + just, False),
        (high - just, False),
        (high + just, True),
    ):
        assert (anytime.sign_test(differences - median) <= 0.05) == rejected
    assert all(math.isnan(end) for end in anytime.interval(differences[:6], 0.05))


def test_ties_and_infinite_differences_count_as_signs() -> None:
    assert anytime.sign_test(np.zeros(9)) == 1.0
    assert (
        anytime.sign_test(np.array([0.0, *[np.inf] * 7]))
        == anytime.sign_test(np.ones(7))
        == 1 / anytime.e_value(7, 0)
    )
