"""The width of a learning rate's basin where it is known."""

import math

import numpy as np
import pandas as pd
import pytest

from lmlab.experiments.studies import table as tables
from lmlab.experiments.studies.basin import basin


@pytest.mark.parametrize(("steepness", "tolerance"), [(0.1, 0.1), (1.0, 0.1), (0.02, 0.05)])
def test_a_parabola_over_the_logarithm_of_the_rate_is_as_wide_as_algebra_says(
    steepness: float, tolerance: float
) -> None:
    octaves = np.linspace(-14, -2, 2401)
    found = basin((2**octaves).tolist(), (2 + steepness * (octaves + 7) ** 2).tolist(), tolerance)
    assert found.octaves == pytest.approx(2 * math.sqrt(tolerance / steepness), rel=1e-3)
    assert found.best == pytest.approx(2**-7)
    assert math.sqrt(found.low * found.high) == pytest.approx(2**-7)
    assert not found.lower_bound


def test_between_the_rates_of_a_sweep_the_loss_is_a_straight_line_over_their_logarithm() -> None:
    found = basin([8.0, 1.0, 2.0, 4.0], [2.2, 2.4, 2.0, 2.1], 0.2)  # in any order
    assert found.best == 2
    assert found.low == pytest.approx(2**0.5)
    assert found.high == pytest.approx(8)
    assert found.octaves == pytest.approx(2.5)
    assert (found.open_below, found.open_above) == (False, True)  # nothing is known above 8


def test_an_edge_of_the_sweep_makes_the_width_a_lower_bound() -> None:
    found = basin([1.0, 2.0, 4.0], [2.0, 2.01, 2.5], 0.1)
    assert (found.open_below, found.open_above, found.lower_bound) == (True, False, True)
    assert found.low == 1
    alone = basin([3.0], [2.0], 0.1)
    assert (alone.octaves, alone.lower_bound) == (0, True)


@pytest.mark.parametrize("broken", [math.nan, math.inf])
def test_a_run_that_broke_down_ends_the_basin(broken: float) -> None:
    found = basin([1.0, 2.0, 4.0, 8.0], [2.5, 2.0, 2.0, broken], 0.1)
    assert found.high == pytest.approx(4)
    assert not found.open_above


def test_rates_beyond_a_hill_do_not_count() -> None:
    found = basin([1.0, 2.0, 4.0, 8.0, 16.0], [2.0, 3.0, 2.0, 2.0, 3.0], 0.0)
    assert found.octaves == 0
    found = basin([1.0, 2.0, 4.0, 8.0, 16.0], [2.05, 3.0, 2.0, 2.0, 3.0], 0.1)
    assert found.low > 2


def test_what_is_no_sweep_is_refused() -> None:
    for rates, losses in (
        ([], []),
        ([0.0, 1.0], [1.0, 2.0]),
        ([1.0, 1.0], [1.0, 2.0]),
        ([1.0], [math.nan]),
    ):
        with pytest.raises(ValueError, match=r"basin needs|finite loss"):
            basin(rates, losses, 0.1)


def results(*rows: tuple[float, int, float, bool]) -> pd.DataFrame:
    columns = ["a.rate", "seed", "validation_bits_per_byte", "at_best"]
    table = pd.DataFrame(rows, columns=columns).assign(arm="one", tokens=1)
    return table.assign(reported=False)


def test_a_studys_summary_says_how_wide_each_arms_sweep_is() -> None:
    table = results((1, 0, 2.1, False), (2, 0, 2.0, True), (4, 0, 2.1, False), (2, 1, 9.0, True))
    (row,) = tables.summary(table, "").to_dict("records")
    # the second seed ran at the best value alone, so it is left out: half an octave either side at
    # 0.05
    assert row["basin_octaves"] == pytest.approx(1)
    assert row["basin_is_least"] is False
    (row,) = tables.summary(table[table["a.rate"] < 4], "").to_dict("records")
    assert row["basin_is_least"] is True


def test_a_value_with_which_a_run_broke_down_is_outside() -> None:
    found = tables.sweep_basin(
        results((1, 0, 2.0, True), (1, 1, 2.0, True), (2, 0, 2.0, False), (2, 1, math.nan, False))
    )
    assert found is not None
    assert (found.high, found.open_above) == (1, False)


def test_an_arm_that_swept_nothing_two_keys_or_names_has_no_basin() -> None:
    one = results((1, 0, 2.0, True))
    assert tables.sweep_basin(one) is None
    table = results((1, 0, 2.0, True), (2, 0, 2.1, False))
    assert tables.sweep_basin(table.assign(**{"b.size": [1, 2]})) is None
    assert tables.sweep_basin(table.assign(**{"a.rate": ["x", "y"]})) is None
    assert tables.sweep_basin(table.assign(**{"b.size": [3, 3]})) is not None
    assert "basin_octaves" not in tables.summary(one, "")
