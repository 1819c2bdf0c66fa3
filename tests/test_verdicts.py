"""Verdicts: known answers by hand, equal variants told apart as rarely as promised, planted
differences found.
"""

import math
from collections.abc import Callable

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import stats

from lmlab.experiments.compare import meaning, permutation
from lmlab.experiments.compare.run import Run
from lmlab.experiments.compare.verdicts import Verdict, judge, judge_all

BITS = "validation.bits_per_byte"
DRAWS = 1000


def runs(*values: float, measure: str = BITS, first: int = 0, name: str = "x") -> list[Run]:
    """A run for each value, with seeds from `first` on."""
    return [
        Run(f"{name}-{seed}", {"train.seed": seed, "train.data_seed": 0}, {measure: value})
        for seed, value in enumerate(values, first)
    ]


def one(
    baseline: list[Run], variant: list[Run], measure: str = BITS, alpha: float = 0.05
) -> Verdict:
    (verdict,) = judge(baseline, variant, [measure], alpha)
    return verdict


def test_a_case_worked_by_hand() -> None:
    # differences -1 -2 -3 -4 -5 -6: all of one sign, so 2 of the 64 ways to flip signs reach as far
    verdict = one(runs(10, 10, 10, 10, 10, 10), runs(9, 8, 7, 6, 5, 4))
    assert verdict.words == "better"
    assert (verdict.pairs, verdict.difference, verdict.baseline_mean, verdict.variant_mean) == (
        6,
        -3.5,
        10,
        6.5,
    )
    assert verdict.p == verdict.corrected == 2 / 64
    # at 0.05 one way besides none may be rejected (2 * 1 / 32 > 0.05 is two): the ends are the
    # extreme means of subsets
    assert (verdict.low, verdict.high) == (-6, -1)
    hedges = math.gamma(2.5) / (math.gamma(2) * math.sqrt(2.5))
    assert verdict.effect == pytest.approx(-3.5 / np.std([1, 2, 3, 4, 5, 6], ddof=1) * hedges)
    assert verdict.needed == 0
    assert verdict.sentence == "better"


def test_more_is_better_where_it_is_and_nothing_is_said_where_it_is_not_known() -> None:
    low, high = [1.0, 1.1, 1.2, 1.3, 1.2, 1.1, 1.0], [2.0, 2.2, 2.1, 2.3, 2.1, 2.2, 2.0]
    for measure, words in (
        ("validation.accuracy", "better"),
        (BITS, "worse"),
        ("some.thing", "higher"),
    ):
        assert (
            one(runs(*low, measure=measure), runs(*high, measure=measure), measure).words == words
        )
    assert (
        one(runs(*high, measure="some.thing"), runs(*low, measure="some.thing"), "some.thing").words
        == "lower"
    )


@pytest.mark.parametrize(
    ("measure", "sign"),
    [
        ("timing.train.tokens_per_second", 1),
        ("timing.train.training_seconds", -1),
        ("validation.calibration_error", 0),
        ("tokens_to_target", -1),
        ("measures.novelty", 0),
        ("grammar.minimal_pairs", 1),
        ("train_validation_gap", 0),
        ("context_gain.nats", 0),
        ("minimal_pairs.accuracy.agreement", 1),
        ("generalisation_gap.gap.bits_per_byte", 0),
        ("generalisation_gap.train.tokens", 0),
        ("entropy_gap.validation", -1),
        ("validation.bytes", 0),
        ("learning_curve.tokens_to.2.5", -1),
        ("novelty.generated.copied.16", 0),
        ("novelty.validation.copied.16", 0),
        ("minimal_pairs.by_length_alone", 0),
        ("steps", 0),
        ("repairs", 0),
    ],
)
def test_the_last_words_of_a_measure_say_what_is_better(measure: str, sign: int) -> None:
    assert meaning.direction(measure) == sign


@pytest.mark.parametrize("pairs", [2, 3, 5, 8, 11])
def test_p_is_that_of_scipys_permutation_test(pairs: int) -> None:
    random = np.random.default_rng(pairs)
    for _ in range(5):
        ours, theirs = random.normal(size=pairs), random.normal(0.5, size=pairs)
        ties = np.round(ours, 0), np.round(theirs, 0)
        for baseline, variant in ((ours, theirs), ties):
            exact = stats.permutation_test(
                (variant, baseline),
                lambda x, y: np.mean(x - y),
                permutation_type="samples",
                vectorized=False,
                n_resamples=9999,
            )
            assert one(runs(*baseline), runs(*variant)).p == pytest.approx(exact.pvalue)


def test_p_from_drawn_flips_is_near_the_exact_one(monkeypatch: pytest.MonkeyPatch) -> None:
    difference = np.random.default_rng(3).normal(0.4, size=14)
    exact = permutation.permute(difference, 0.05)
    monkeypatch.setattr(permutation, "EXACT", 5)
    permutation.flips.cache_clear()
    drawn = permutation.permute(difference, 0.05)
    permutation.flips.cache_clear()
    assert drawn == pytest.approx(exact, abs=0.03)
    assert drawn != exact


@pytest.mark.parametrize("pairs", [0, 1, 2, 3, 5])
def test_few_seeds_show_nothing_however_large_the_difference(pairs: int) -> None:
    verdict = one(
        runs(*[1.0] * 5),
        runs(*np.linspace(9, 10, 5)[:pairs], *[5.0] * (5 - pairs), first=0)[:pairs]
        + runs(7, first=90),
    )
    assert verdict.pairs == pairs
    assert verdict.words == "too few seeds"
    assert math.isnan(verdict.low)
    assert math.isnan(verdict.high)
    assert verdict.needed == 6 - pairs
    assert f"about {6 - pairs} more would be needed" in verdict.sentence


def test_with_more_measures_more_seeds_are_too_few() -> None:
    measures = [f"a{number}.loss" for number in range(4)]

    def many(value: float, pairs: int) -> list[Run]:
        return [
            Run(f"{seed}", {"train.seed": seed}, dict.fromkeys(measures, value + seed * value))
            for seed in range(pairs)
        ]

    assert {verdict.words for verdict in judge(many(1, 6), many(2, 6), measures)} == {
        "too few seeds"
    }
    assert {verdict.words for verdict in judge(many(1, 6), many(2, 6), measures[:1])} == {"worse"}
    assert {verdict.words for verdict in judge(many(1, 8), many(2, 8), measures)} == {"worse"}


def test_runs_are_paired_by_both_seeds_whatever_their_order() -> None:
    baseline = [
        Run("a", {"train.seed": seed, "train.data_seed": data}, {BITS: seed + data})
        for seed in (0, 1)
        for data in (0, 5)
    ]
    variant = [Run("b", run.params, {BITS: run.measures[BITS] + 1}) for run in reversed(baseline)]
    verdict = one(baseline, variant[:3])
    assert (verdict.pairs, verdict.difference) == (3, 1)
    assert one(baseline, [Run("b", {"train.seed": 0, "train.data_seed": 1}, {BITS: 1})]).pairs == 0


def test_pairing_takes_out_what_seeds_have_in_common() -> None:
    random = np.random.default_rng(0)
    seeds = random.normal(0, 10, 8)
    verdict = one(runs(*seeds), runs(*(seeds - 0.1 + random.normal(0, 0.01, 8))))
    assert verdict.words == "better"
    assert -0.12 < verdict.low < verdict.high < -0.08


def test_equal_runs_show_no_difference() -> None:
    verdict = one(runs(*range(8)), runs(*range(8)))
    assert (verdict.words, verdict.p, verdict.difference, verdict.effect) == (
        "no difference shown",
        1.0,
        0.0,
        0.0,
    )
    assert (verdict.low, verdict.high, verdict.detectable) == (0, 0, 0)
    assert "all pairs are equal" in verdict.sentence


def test_a_constant_difference_is_shown() -> None:
    verdict = one(runs(*range(8)), runs(*np.arange(8) + 0.25))
    assert (verdict.words, verdict.p) == ("worse", 2 / 256)
    assert verdict.low == verdict.high == 0.25
    assert verdict.effect == math.inf


def diverged(*seeds: int) -> list[Run]:
    """Runs with these seeds that diverged."""
    return [
        Run(
            f"d-{seed}",
            {"train.seed": seed, "train.data_seed": 0},
            {},
            diverged="diverged at step 3",
        )
        for seed in seeds
    ]


def test_a_run_that_diverged_counts_against_its_variant_and_no_mean_is_told() -> None:
    baseline = runs(*[2.0, 2.1, 2.2, 2.0, 2.1, 2.2, 2.0, 2.1])
    better = [1.9, 2.0, 2.1, 1.9, 2.0, 2.1, 1.8, 2.0]
    assert one(baseline, runs(*better)).words == "better"
    for broken, said in (
        (runs(math.inf, math.inf, first=6), "came to NaN or infinity"),
        (runs(math.nan, -math.inf, first=6), "came to NaN or infinity"),
        (diverged(6, 7), "diverged"),
    ):
        verdict = one(baseline, [*runs(*better[:-2]), *broken])
        assert verdict.words == "no difference shown"
        assert (
            verdict.pairs,
            verdict.diverged_variant + verdict.infinite_variant,
            verdict.diverged_baseline,
        ) == (8, 2, 0)
        assert all(
            math.isnan(value)
            for value in (
                verdict.baseline_mean,
                verdict.variant_mean,
                verdict.difference,
                verdict.low,
                verdict.high,
                verdict.effect,
            )
        )
        assert verdict.survivors_variant == pytest.approx(2.0)
        assert f"2 of 8 of the variant {said}" in verdict.sentence
    verdict = one(baseline, diverged(*range(8)))
    assert (verdict.words, verdict.p, verdict.test) == ("worse", 2 / 256, "ranks")
    assert one(diverged(*range(8)), baseline).words == "better"


def test_ranks_with_diverged_pairs_by_hand() -> None:
    # differences -1 -2 -3 -4, a pair in which both diverged, and one in which the variant did:
    # ranks of their sizes are 2 3 4 5, 1 for the tie, and 6; the sum of signed ranks is -14 + 6 =
    # -8. Of the 2**5 ways to give 2 3 4 5 6 signs (the tie has none) those that reach 8 either way
    # are counted by hand: 20 - 2 s >= 8 for the sum s of a subset
    ways = sum(
        abs(20 - 2 * sum(rank for place, rank in enumerate((2, 3, 4, 5, 6)) if way >> place & 1))
        >= 8
        for way in range(32)
    )
    variant = [*runs(9, 8, 7, 6), *diverged(4, 5)]
    verdict = one([*runs(10, 10, 10, 10), *diverged(4), *runs(10, first=5)], variant)
    assert verdict.p == ways / 32
    assert verdict.pairs == 6
    # a pair in which only the variant diverged weighs more than any with two numbers, however far
    # those are apart
    assert (
        one(runs(*[10] * 6), [*runs(-1e9, 8, 7, 6, 5), *diverged(5)]).p
        == one(runs(*[10] * 6), [*runs(1, 8, 7, 6, 5), *diverged(5)]).p
    )


@pytest.mark.filterwarnings("error")
def test_where_all_is_equal_or_nothing_is_a_number_words_say_so() -> None:
    for ours, theirs, said in (
        (diverged(*range(8)), diverged(*range(8)), "all runs diverged"),
        (runs(*[2.0] * 8), runs(*[2.0] * 8), "all pairs are equal"),
        (runs(*[math.nan] * 8), runs(*[math.nan] * 8), "all runs came to NaN or infinity"),
    ):
        verdict = one(ours, theirs)
        assert (verdict.words, verdict.p) == ("no difference shown", 1.0)
        assert said in verdict.sentence
    assert one(diverged(*range(3)), diverged(*range(3))).words == "too few seeds"
    assert one(runs(1.0), runs(2.0)).words == "too few seeds"


def test_no_verdict_where_runs_diverged_and_it_is_not_known_what_is_worse() -> None:
    for variant in (
        [*runs(2, 3, math.inf, measure="odd")],
        [*runs(2, 3, 4, measure="odd"), *diverged(7)],
    ):
        if variant[-1].diverged:
            variant[-1] = Run("d", variant[-1].params, {"odd": math.nan}, diverged="diverged")
        verdict = one(runs(1, 2, 3, measure="odd"), variant, "odd")
        assert (verdict.words, verdict.difference) == (
            "no verdict",
            pytest.approx(math.nan, nan_ok=True),
        )
        assert "not known what is worse" in verdict.sentence


def test_a_measure_that_one_side_lacks_is_not_compared() -> None:
    assert judge(runs(1, 2), runs(1, 2, measure="other"), [BITS, "other"]) == []


def test_holms_correction_by_hand() -> None:
    random = np.random.default_rng(1)
    baseline = [
        Run(str(seed), {"train.seed": seed}, dict.fromkeys("abc", 0.0)) for seed in range(10)
    ]
    shifts = {"a": 5.0, "b": 0.55, "c": 0.1}
    variant = [
        Run(
            str(seed),
            {"train.seed": seed},
            {key: shift + random.normal() for key, shift in shifts.items()},
        )
        for seed in range(10)
    ]
    found = judge(baseline, variant, ["a", "b", "c"])
    low, middle, high = sorted(verdict.p for verdict in found)
    wanted = [
        min(1, 3 * low),
        min(1, max(3 * low, 2 * middle)),
        min(1, max(3 * low, 2 * middle, high)),
    ]
    assert sorted(verdict.corrected for verdict in found) == pytest.approx(wanted)
    assert {verdict.compared for verdict in found} == {3}
    assert found[0].level == pytest.approx(0.05 / 3)


def test_variants_that_could_show_nothing_take_nothing_from_those_that_can() -> None:
    baseline = runs(*[1.0] * 6)
    found = judge_all(
        baseline,
        {"full": runs(*np.arange(2, 8)), "few": runs(3, 4), "none": runs(5, first=50)},
        [BITS],
    )
    assert {verdict.variant: verdict.words for verdict in found} == {
        "full": "worse",
        "few": "too few seeds",
        "none": "too few seeds",
    }
    assert found[0].compared == 1


NOISE: dict[str, Callable[[np.random.Generator, tuple[int, ...]], NDArray[np.float64]]] = {
    "normal": lambda random, shape: random.normal(size=shape),
    "skewed": lambda random, shape: random.lognormal(sigma=1.5, size=shape),
    "heavy tails": lambda random, shape: random.standard_cauchy(size=shape),
    "often equal": lambda random, shape: random.integers(0, 3, size=shape).astype(float),
}


def most(rate: float, draws: int = DRAWS) -> float:
    """A count of so many draws that a rate exceeds by chance about once in ten thousand times."""
    return float(stats.binom.ppf(1 - 1e-4, draws, rate))


@pytest.mark.parametrize("noise", NOISE)
@pytest.mark.parametrize("pairs", [3, 6, 8, 12, 20])
def test_equal_variants_are_told_apart_no_more_often_than_promised(pairs: int, noise: str) -> None:
    random = np.random.default_rng(pairs)
    values = NOISE[noise](random, (DRAWS, 2, pairs))
    results = [permutation.permute(draw[1] - draw[0], 0.05) for draw in values]
    rejected = sum(p <= 0.05 for p, _, _ in results)
    assert rejected <= most(0.05)
    if noise == "normal" and pairs >= 8:
        assert rejected > 0.03 * DRAWS  # and not much more rarely, or nothing would ever be found
    for p, low, high in results:  # interval and test never contradict each other
        assert math.isnan(low) if pairs < 6 else (p <= 0.05) == (not low <= 0 <= high)


@pytest.mark.parametrize("pairs", [6, 9])
def test_over_several_measures_at_once_equal_variants_are_told_apart_no_more_often(
    pairs: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        permutation, "enough", lambda effect, level: 1
    )  # which takes longest, and decides nothing here
    monkeypatch.setattr(permutation, "enough_range", lambda effect, pairs, level: (1, 1))
    random = np.random.default_rng(pairs)
    measures = [f"a{number}.loss" for number in range(4)]
    wrong = 0
    for _ in range(DRAWS // 4):
        values = random.normal(size=(3, pairs, 4)) + random.normal(size=(3, pairs, 1))
        sides = [
            [
                Run("", {"train.seed": seed}, dict(zip(measures, row)))
                for seed, row in enumerate(side.tolist())
            ]
            for side in values
        ]
        found = judge_all(sides[0], {"one": sides[1], "other": sides[2]}, measures)
        wrong += any(verdict.words in ("better", "worse") for verdict in found)
        for verdict in found:
            shown = verdict.words in ("better", "worse")
            assert shown == (verdict.corrected <= 0.05) or verdict.words == "too few seeds"
            assert (
                shown == (not verdict.low <= 0 <= verdict.high) or verdict.words == "too few seeds"
            )
    assert wrong <= most(0.05, DRAWS // 4)


@pytest.mark.parametrize("pairs", [6, 8, 20])
def test_intervals_hold_the_true_difference_as_often_as_promised(pairs: int) -> None:
    random = np.random.default_rng(pairs)
    held = 0
    for difference in random.normal(0.7, 1.3, size=(DRAWS, pairs)):
        _, low, high = permutation.permute(difference, 0.05)
        held += low <= 0.7 <= high
    assert DRAWS - held <= most(0.05)
    assert held < 0.985 * DRAWS  # nor are they needlessly wide


@pytest.mark.parametrize("effect", [0.7, 1.0, 1.5, 2.5])
@pytest.mark.parametrize("level", [0.05, 0.0125])
def test_as_many_pairs_as_are_said_to_be_needed_find_a_planted_difference(
    effect: float, level: float
) -> None:
    pairs = permutation.enough(effect, level)
    random = np.random.default_rng(pairs)
    found = sum(
        permutation.permute(draw, level)[0] <= level
        for draw in random.normal(effect, 1, size=(DRAWS, pairs))
    )
    assert found > 0.75 * DRAWS
    if pairs > permutation.least(level):
        fewer = sum(
            permutation.permute(draw, level)[0] <= level
            for draw in random.normal(effect, 1, size=(DRAWS, pairs - 2))
        )
        assert fewer < 0.8 * DRAWS


@pytest.mark.filterwarnings("error")
def test_numbers_whose_squares_are_beyond_counting_have_an_effect_of_nothing_known() -> None:
    assert permutation.effect(np.array([1e300, -1e299, 3e300, 2e300])) == 0.0


def test_no_difference_shown_comes_with_one_that_would_have_been() -> None:
    random = np.random.default_rng(5)
    baseline = random.normal(2, 0.02, 12)
    verdict = one(runs(*baseline), runs(*(baseline + random.normal(0, 0.01, 12))))
    assert verdict.words == "no difference shown"
    assert f"{verdict.detectable:.2g}" in verdict.sentence
    assert permutation.power(12, verdict.detectable / 0.01, 0.05) == pytest.approx(0.8, abs=0.25)
    planted = random.normal(verdict.detectable, 0.01, size=(DRAWS, 12))
    assert sum(permutation.permute(draw, 0.05)[0] <= 0.05 for draw in planted) > 0.6 * DRAWS


def test_a_few_pairs_more_are_said_to_be_needed_for_a_small_effect_than_for_a_large_one() -> None:
    assert [permutation.enough(effect, 0.05) for effect in (math.nan, 30, 0.5)][:2] == [6, 6]
    assert permutation.enough(0.5, 0.05) == pytest.approx(
        34, abs=1
    )  # the t-test's, as in tables of Cohen's
    assert permutation.enough(0.0, 0.05) == permutation.MOST_NEEDED
    assert permutation.least(0.05) == 6
    assert permutation.least(0.0625) == 5
    assert permutation.least(0.01) == 8
