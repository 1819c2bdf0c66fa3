"""The scaling law: published optima, planted constants, outliers, intervals that hold, and what is
refused.
"""

from collections.abc import Callable
from math import inf, nan

import numpy as np
import pandas as pd
import pytest
from scipy import optimize

from lmlab.core.errors import UserError
from lmlab.experiments.studies import scaling
from lmlab.experiments.studies.scaling import PUBLISHED, Law, Problem, bootstrap, fit

BESIROGLU = PUBLISHED["Besiroglu et al. 2024"]
PLANTED = Law(E=1.1, A=30.0, B=200.0, alpha=0.35, beta=0.4)
SIZES = (1e4, 3e4, 1e5, 3e5, 1e6)
BUDGETS = (1.25e5, 2.5e5, 5e5, 1e6, 2e6)


def runs(law: Law = PLANTED, noise: float = 0.0, seeds: int = 1, seed: int = 0) -> pd.DataFrame:
    """Every size with every budget, with normal noise on the log of the loss."""
    rng = np.random.default_rng(seed)
    rows = [(n, d, float(law.loss(n, d))) for n in SIZES for d in BUDGETS for _ in range(seeds)]
    table = pd.DataFrame(rows, columns=list(scaling.COLUMNS))
    table["nats"] *= np.exp(noise * rng.standard_normal(len(table)))
    return table


def constants(law: Law) -> list[float]:
    return [law.E, law.A, law.B, law.alpha, law.beta]


def test_the_published_law_gives_the_published_optimum() -> None:
    parameters, tokens = BESIROGLU.optimum(5.76e23)
    assert parameters == pytest.approx(7.225e10, rel=5e-4)
    assert tokens / parameters == pytest.approx(18.4, abs=0.05)
    assert 6 * parameters * tokens == pytest.approx(5.76e23)


def test_the_optimum_is_where_a_search_finds_it_also_when_flops_are_counted_otherwise() -> None:
    best = optimize.minimize_scalar(
        lambda log_n: float(PLANTED.loss(np.exp(log_n), 1e13 / 6 / np.exp(log_n))),
        bounds=(5, 20),
        method="bounded",
    )
    parameters, tokens = PLANTED.optimum(1e13)
    assert parameters == pytest.approx(np.exp(best.x), rel=1e-3)
    assert PLANTED.optimum_counted(1e13, lambda n: 6.0) == pytest.approx(
        (parameters, tokens), rel=1e-5
    )
    assert PLANTED.optimum_counted(1e13, lambda n: 12.0) == pytest.approx(
        PLANTED.optimum(1e13, each=12.0), rel=1e-5
    )
    dear_when_small, more = PLANTED.optimum_counted(1e13, lambda n: 6 * (1 + 1e5 / n))
    assert dear_when_small > parameters
    assert 6 * (1 + 1e5 / dear_when_small) * dear_when_small * more == pytest.approx(1e13)


def test_the_best_size_grows_with_the_power_that_the_exponents_give() -> None:
    small, large = BESIROGLU.optimum(1e20)[0], BESIROGLU.optimum(1e22)[0]
    assert np.log10(large / small) / 2 == pytest.approx(0.3658 / (0.3478 + 0.3658))
    with pytest.raises(ValueError, match="never be too large"):
        Law(1.0, 0.0, 2.0, 0.3, 0.3).optimum(1e10)


def test_the_gradient_is_that_of_the_value() -> None:
    some = runs(noise=0.002)  # residuals on both sides of where Huber's loss turns straight
    problem = Problem(*some.to_numpy().T, np.arange(len(some)) % 3.0)
    at = problem.near(Law(1.0, 40.0, 150.0, 0.38, 0.37))
    assert problem.value(at)[1] == pytest.approx(
        optimize.approx_fprime(at, lambda x: problem.value(x)[0], 1e-7), rel=1e-3
    )


@pytest.mark.parametrize(
    "law", [PLANTED, Law(0.02, 9.0, 60.0, 0.2, 0.3), Law(0.5, 4e3, 3e2, 0.9, 0.3), BESIROGLU]
)
def test_constants_planted_without_noise_are_recovered_exactly(law: Law) -> None:
    assert constants(fit(runs(law))) == pytest.approx(constants(law), rel=1e-5)


def test_the_fit_does_not_depend_on_order_unit_or_how_runs_are_weighted() -> None:
    noisy = runs(noise=0.01, seed=3)
    law = fit(noisy)
    assert constants(fit(noisy.sample(frac=1, random_state=1))) == pytest.approx(
        constants(law), rel=1e-4
    )
    millions = fit(noisy.assign(tokens=noisy["tokens"] / 1e6))
    assert millions.B * 1e6**millions.beta == pytest.approx(law.B, rel=1e-3)
    bits = fit(noisy.assign(nats=noisy["nats"] / np.log(2)))
    assert (bits.alpha, bits.E * np.log(2)) == pytest.approx((law.alpha, law.E), rel=1e-4)
    twice = np.ones(len(noisy))
    twice[:7] = 2
    values = noisy.to_numpy().T
    weighted = Problem(*values, twice)
    repeated = fit(pd.concat([noisy, noisy[:7]]))
    assert constants(weighted.law(weighted.solve())) == pytest.approx(constants(repeated), rel=1e-4)


def test_one_spoilt_run_hardly_moves_the_fit_where_it_would_move_least_squares(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    clean = runs(noise=0.0005)
    spoilt = clean.copy()
    spoilt.loc[20, "nats"] *= 1.3
    before = fit(clean)

    def moved() -> float:
        return float(np.abs(np.array(constants(fit(spoilt))) / constants(before) - 1).max())

    robust = moved()
    monkeypatch.setattr(scaling, "DELTA", 1.0)
    assert robust < 0.02
    assert moved() > 10 * robust


def test_intervals_hold_what_was_planted_as_often_as_they_say(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(
        Problem, "starts", lambda problem: [problem.near(PLANTED)]
    )  # the search is not what is tested here
    held = {"alpha": 0, "beta": 0, "size_exponent": 0, "prediction": 0}
    draws = 40
    for draw in range(draws):
        fitted = bootstrap(runs(noise=0.01, seed=draw), replicates=30, seed=draw)
        for key in ("alpha", "beta", "size_exponent"):
            low, high = fitted.interval(lambda law, key=key: getattr(law, key))  # type: ignore[misc]
            held[key] += low <= getattr(PLANTED, key) <= high
        new = float(PLANTED.loss(3e6, 1e6)) * np.exp(
            0.01 * np.random.default_rng([draw, 9]).standard_normal()
        )
        _, low, high = fitted.predict(3e6, 1e6, seed=draw)
        held["prediction"] += low <= new <= high
    # 38 of 40 are expected, with a standard deviation of 1.4
    assert all(34 <= count <= 40 for count in held.values()), held


def test_more_seeds_make_intervals_narrower_and_distance_makes_predictions_wider() -> None:
    few, many = (
        bootstrap(runs(noise=0.01, seeds=seeds), replicates=60, seed=0) for seeds in (1, 8)
    )
    widths = [np.ptp(fitted.interval(lambda law: law.alpha)) for fitted in (few, many)]
    assert widths[1] < 0.7 * widths[0]
    near, far = (np.ptp(few.predict(size, 1e6)[1:]) for size in (3e6, 3e9))
    assert far > 1.5 * near
    again = bootstrap(runs(noise=0.01), replicates=60, seed=0)
    assert (again.law, again.replicates, again.predict(3e6, 1e6)) == (
        few.law,
        few.replicates,
        few.predict(3e6, 1e6),
    )


def test_a_law_is_told_without_each_size_and_each_budget() -> None:
    laws = scaling.left_out(runs(), Law(1.0, 40.0, 150.0, 0.38, 0.37))
    assert list(laws) == [
        *(f"parameters {size:,}" for size in SIZES),
        *(f"tokens {budget:,}" for budget in BUDGETS),
    ]
    for law in laws.values():
        assert constants(law) == pytest.approx(constants(PLANTED), rel=1e-3)
    corner = runs().query(
        "parameters <= 1e5 and tokens <= 5e5"
    )  # of three sizes and budgets, none can be missed
    assert scaling.left_out(corner, PLANTED) == {}


@pytest.mark.parametrize(
    ("spoil", "told"),
    [
        (lambda table: table[table["parameters"] < 1e5], "at least 3 different sizes, not 2"),
        (
            lambda table: table[table["tokens"] > 9e5],
            "at least 3 different amounts of tokens, not 2",
        ),
        (lambda table: table.assign(nats=2.0), "all losses are equal"),
        (
            lambda table: table[
                table["tokens"] == table["parameters"].map(dict(zip(SIZES, BUDGETS)))
            ],
            "more pairs",
        ),
        (
            lambda table: table.assign(tokens=20 * table["parameters"] + table["tokens"] / 1e6)[
                ::2
            ],
            "rise together",
        ),
        (lambda table: table.assign(nats=[nan, *table["nats"][1:]]), "positive numbers"),
        (lambda table: table.assign(nats=[inf, *table["nats"][1:]]), "positive numbers"),
        (lambda table: table.assign(nats=-table["nats"]), "positive numbers"),
    ],
)
def test_runs_that_can_tell_no_law_are_refused_in_one_line(
    spoil: Callable[[pd.DataFrame], pd.DataFrame], told: str
) -> None:
    with pytest.raises(UserError, match=told) as refusal:
        bootstrap(spoil(runs()), replicates=40, seed=0)
    assert "\n" not in str(refusal.value)
