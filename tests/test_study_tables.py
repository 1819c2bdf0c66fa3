"""A study's summary: means, intervals and costs whose values are known."""

import json
from math import sqrt
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from lmlab.experiments.studies import records, study
from lmlab.experiments.studies import table as tables

COLUMNS = [
    "arm",
    "a.rate",
    "reported",
    "at_best",
    "seed",
    "validation_bits_per_byte",
    "tokens",
    "step_seconds",
    "step_bytes",
]


MADE = {"params": {}, "flops": 0.0, "corpus": {}, "code": {}, "versions": {}, "processor": "one"}


def table(*rows: tuple[Any, ...]) -> pd.DataFrame:
    return pd.DataFrame(rows, columns=COLUMNS)


def test_the_interval_is_students_over_seeds_at_the_best_value() -> None:
    made = tables.summary(
        table(
            ("one", 0.1, True, True, 0, 2.0, 10, 1.0, 5),
            ("one", 0.1, True, True, 1, 2.2, 10, 3.0, 5),
            ("one", 0.1, True, True, 2, 2.4, 10, 2.0, 5),
            ("one", 0.9, False, False, 0, 1.0, 10, 9.0, 9),
        ),
        "one",
    )
    (row,) = made.to_dict("records")
    half = (
        4.302652729911275 * 0.2 / sqrt(3)
    )  # Student's quantile for two degrees of freedom, from a printed table
    assert (row["bits_per_byte"], row["low"], row["high"]) == pytest.approx(
        (2.2, 2.2 - half, 2.2 + half)
    )
    assert (row["seeds"], row["a.rate"], row["step_seconds"]) == (3, 0.1, 2.0)


def test_there_is_no_mean_over_runs_of_which_one_diverged_and_their_number_is_told() -> None:
    made = tables.summary(
        table(
            ("half", 0.1, True, True, 0, 1.0, 10, 1.0, 5),
            ("half", 0.1, True, True, 1, float("nan"), float("nan"), float("nan"), float("nan")),
            ("none", 0.1, True, True, 0, float("nan"), float("nan"), float("nan"), float("nan")),
            ("all", 0.1, True, True, 0, 3.0, 10, 3.0, 5),
            ("all", 0.1, True, True, 1, 3.2, 10, 3.0, 5),
        ),
        "all",
    )
    assert made["arm"].tolist()[0] == "all"  # and the survivor of another arm is not the best
    rows = made.set_index("arm")
    assert rows.loc[["half", "none"], ["bits_per_byte", "low", "high"]].isna().all(axis=None)
    assert rows["diverged"].fillna(0).to_dict() == {"all": 0, "half": 1, "none": 1}
    assert rows["seeds"].to_dict() == {"all": 2, "half": 2, "none": 1}


def test_arms_come_in_order_and_cost_is_beside_the_reference() -> None:
    made = tables.summary(
        table(
            ("dear", 0.1, True, True, 0, 3.0, 10, 6.0, 50),
            ("plain", 0.2, True, True, 0, 2.0, 10, 2.0, 100),
        ),
        "plain",
    )
    assert made["arm"].tolist() == ["plain", "dear"]
    assert made["relative_seconds"].tolist() == [1.0, 3.0]
    assert made["relative_bytes"].tolist() == [1.0, 0.5]
    assert made["low"].isna().all()  # one seed says nothing of others
    assert "relative_seconds" not in tables.summary(
        table(("a", 0.1, True, True, 0, 3.0, 10, 6.0, 50)), "not there"
    )


def point(seed: int, bits: float, rate: float = 0.1, **more: Any) -> dict[str, Any]:
    measured = {
        "validation": {"bits_per_byte": bits, "nats_per_token": bits},
        "steps": 4,
        "tokens": 40,
    }
    return {
        "at": {"a.rate": rate},
        "seed": seed,
        "reported": rate == 0.1,
        **measured,
        "training_seconds": 2.0,
        **more,
    }


def test_curves_and_angles_are_means_over_the_seeds_at_the_best_value_alone(
    tmp_path: Path,
) -> None:
    points = [
        point(0, 2.0, training=[[2, 3.0], [4, 2.0]], angle=[[0, 0.5]]),
        point(1, 2.2, training=[[2, 4.0], [4, 2.5]], angle=[[0, 0.7]]),
        point(0, 9.0, rate=7.0, training=[[2, 100.0]], angle=[[0, -1.0]]),
        {"at": {"a.rate": 0.1}, "seed": 3, "reported": True, "diverged": "at step 2"},
    ]
    path = tmp_path / "one.json"
    path.write_text(json.dumps({"arm": "one", "best": {"a.rate": 0.1}, "points": points}))
    arms = {"one": records.read(path)}
    assert tables.curves(arms).to_dict("records") == [
        {"arm": "one", "tokens": 20.0, "seconds": 1.0, "nats": 3.5},
        {"arm": "one", "tokens": 40.0, "seconds": 2.0, "nats": 2.25},
    ]
    assert tables.readings(arms)["cosine"].tolist() == pytest.approx([0.6])


def test_what_a_study_found_is_written_the_same_each_time(tmp_path: Path) -> None:
    shared = {
        "changes": {},
        "flops": 0.0,
        "sweep_seeds": [],
        "seeds": [0, 1],
        "processes": 1,
        "each": "",
        "sweep": {},
    }
    arms = {"one": {"changes": {}, "sweep": {}}, "two": {"changes": {}, "sweep": {}}}
    (tmp_path / "params.yaml").write_text(
        json.dumps({"study": {**shared, "reference": "one"}, "arms": arms})
    )
    (tmp_path / "points").mkdir()
    for number, name in enumerate(arms, start=2):
        cost = {
            "step_seconds": 1.0 * number,
            "step_bytes": 10 * number,
            "angle": [[0, 0.5], [40, 0.6]],
        }
        points = [
            point(seed, number + 0.1 * seed, training=[[2, 3.0], [4, 2.0]], **cost)
            for seed in (0, 1)
        ]
        made = {"arm": name, "best": {"a.rate": 0.1}, "made": MADE, "points": points}
        (tmp_path / "points" / f"{name}.json").write_text(json.dumps(made))
    tables.write(study.read(tmp_path))
    written = {
        path.name: path.read_bytes()
        for path in tmp_path.rglob("*.*")
        if path.parent.name != "points"
    }
    charts = {"final.svg", "loss_by_tokens.svg", "loss_by_seconds.svg", "angle.svg", "cost.svg"}
    assert set(written) == {"params.yaml", "results.csv", "summary.csv", *charts}
    for chart in charts:
        assert written[chart].startswith(b"<svg")
        assert all(f">{name}<".encode() in written[chart] for name in arms), chart
    tables.write(study.read(tmp_path))
    again = {
        path.name: path.read_bytes()
        for path in tmp_path.rglob("*.*")
        if path.parent.name != "points"
    }
    assert again == written
