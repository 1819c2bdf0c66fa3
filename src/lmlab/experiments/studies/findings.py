"""What a study found: every arm at its best with an interval over seeds, its cost beside the
reference arm's, and charts.
"""

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import altair
import pandas as pd
import vl_convert
from scipy import stats

from lmlab.core.files import read_json, whole_file
from lmlab.experiments.studies.basin import Basin, basin
from lmlab.experiments.studies.studies import Study, collect

CONFIDENCE = 0.95
TOLERANCE = 0.05
"""Bits per byte above the best of a sweep that still count as in its basin."""


def write(study: Study, folder: Path) -> pd.DataFrame:
    """Write results.csv, summary.csv and charts of the arms whose files are in `folder`/points;
    return the summary.

    Raises UserError when there is nothing to write about.
    """
    arms = {
        path.stem: read_json(path, made_by="arm")
        for path in sorted((folder / "points").glob("*.json"))
    }
    table = summary(collect(folder / "points", folder / "results.csv"), study.params.reference)
    with whole_file(folder / "summary.csv") as partial:
        table.to_csv(partial, index=False, lineterminator="\n", float_format="%.6g")
    order = table["arm"].tolist()
    (folder / "charts").mkdir(exist_ok=True)
    for name, chart in charts(table, curves(arms), readings(arms), order):
        with whole_file(folder / "charts" / f"{name}.svg") as partial:
            partial.write_text(vl_convert.vegalite_to_svg(chart.to_json()), encoding="utf-8")
    return table


def summary(results: pd.DataFrame, reference: str) -> pd.DataFrame:
    """A row for each arm, the best first: what its runs at the best value measured, over seeds.

    `low` and `high` bound the mean of bits per byte with 95 % confidence by Student's distribution,
    which takes the seeds' results as normal; with a single seed there is no interval. Where runs
    diverged there is no mean either: `diverged` says how many did. Seconds and bytes are medians,
    and relative to the reference. `basin_octaves`, for an arm that swept one number, is how wide
    the values are that do nearly as well as the best, and `basin_is_least` says that the sweep ends
    within them.
    """
    rows = []
    for arm, runs in results[results["at_best"]].groupby("arm"):
        mean, half = _mean_and_half(runs["validation_bits_per_byte"])
        row = {
            "arm": arm,
            "seeds": len(runs),
            "bits_per_byte": mean,
            "low": mean - half,
            "high": mean + half,
        }
        if diverged := int(runs["validation_bits_per_byte"].isna().sum()):
            row["diverged"] = diverged
        row |= {
            key: runs[key].iloc[0]
            for key in map(str, runs.columns)
            if "." in key and runs[key].notna().all()
        }
        medians = ("tokens", "training_seconds", "step_seconds", "step_bytes")
        row |= {key: runs[key].median() for key in medians if key in runs}
        if swept := sweep_basin(results[results["arm"] == arm]):
            row |= {"basin_octaves": swept.octaves, "basin_is_least": swept.lower_bound}
        rows.append(row)
    table = pd.DataFrame(rows).sort_values("bits_per_byte", ignore_index=True)
    at = table["arm"] == reference
    for key, name in (("step_seconds", "relative_seconds"), ("step_bytes", "relative_bytes")):
        if key in table and at.any():
            table[name] = table[key] / table.loc[at, key].iloc[0]
    return table


def _mean_and_half(bits: pd.Series) -> tuple[float, float]:
    """The mean over seeds and half of its interval; NaN where a run has no loss, or where there is
    a single one.
    """
    mean, count = bits.mean(skipna=False), len(bits)
    if count < 2:
        return mean, math.nan
    return mean, stats.t.ppf((1 + CONFIDENCE) / 2, count - 1) * bits.std(skipna=False) / count**0.5


def sweep_basin(runs: pd.DataFrame) -> Basin | None:
    """The basin of an arm's sweep, from its rows of results; None unless it swept a single key,
    over positive numbers.

    A value's loss is the mean over the seeds that every value was run with, so that none is judged
    by more than the others.
    """
    keys = [key for key in map(str, runs.columns) if "." in key and runs[key].nunique() > 1]
    if (
        len(keys) != 1
        or not pd.api.types.is_numeric_dtype(runs[keys[0]])
        or (runs[keys[0]] <= 0).any()
    ):
        return None
    losses = runs.pivot(index=keys[0], columns="seed", values="validation_bits_per_byte")
    ran = runs.assign(ran=1).pivot(index=keys[0], columns="seed", values="ran").notna().all()
    means = losses.loc[:, ran].mean(
        axis=1, skipna=False
    )  # a run that diverged has no loss, and so its value has none
    if not means.notna().any():
        return None
    return basin(means.index.tolist(), means.tolist(), TOLERANCE)


def _at_best(arms: dict[str, dict[str, Any]]) -> Iterator[tuple[str, dict[str, Any]]]:
    for name, arm in arms.items():
        for point in arm["points"]:
            if point["at"] == arm["best"] and "broke" not in point:
                yield name, point


def curves(arms: dict[str, dict[str, Any]]) -> pd.DataFrame:
    """Training loss along the runs at each arm's best, averaged over seeds: arm, tokens, seconds,
    nats.
    """
    rows = []
    for name, point in _at_best(arms):
        for step, nats in point.get("training", []):
            share = step / point["steps"]
            seconds = share * point["training_seconds"]
            rows.append(
                {"arm": name, "tokens": share * point["tokens"], "seconds": seconds, "nats": nats}
            )
    if not rows:
        return pd.DataFrame(columns=["arm", "tokens", "seconds", "nats"])
    return pd.DataFrame(rows).groupby(["arm", "tokens"], as_index=False).mean()


def readings(arms: dict[str, dict[str, Any]]) -> pd.DataFrame:
    """Angles to backprop's gradient in the runs at each arm's best, averaged over seeds: arm,
    tokens, cosine.
    """
    rows = [
        {"arm": name, "tokens": tokens, "cosine": cosine}
        for name, point in _at_best(arms)
        for tokens, cosine in point.get("angle", [])
    ]
    if not rows:
        return pd.DataFrame(columns=["arm", "tokens", "cosine"])
    return pd.DataFrame(rows).groupby(["arm", "tokens"], as_index=False).mean()


def charts(
    table: pd.DataFrame, lines: pd.DataFrame, angles: pd.DataFrame, order: list[str]
) -> Iterator[tuple[str, Any]]:
    """Vega-Lite charts by file name; those without data are left out."""
    height = max(200, 16 * len(order))
    by_arm = altair.Y("arm:N", sort=order, title=None)

    bits = altair.X(
        "bits_per_byte:Q", title="bits per byte on validation", scale=altair.Scale(zero=False)
    )
    marks = altair.Chart(table).mark_point(filled=True, size=50).encode(x=bits, y=by_arm)
    if table["low"].notna().any():
        interval = (
            altair.Chart(table[table["low"].notna()])
            .mark_rule()
            .encode(x="low:Q", x2="high:Q", y=by_arm)
        )
        marks = altair.layer(interval, marks)
    yield (
        "final",
        marks.properties(height=height, width=500, title="Mean over seeds, with 95 % intervals"),
    )

    def along(data: pd.DataFrame, x: str, y: str, title: str, log: bool) -> Any:
        scale = altair.Scale(type="log") if log else altair.Scale()
        where = altair.X(f"{x}:Q", title=x, scale=scale)
        how_high = altair.Y(f"{y}:Q", title=title, scale=altair.Scale(zero=False))
        colour = altair.Color(
            "arm:N", sort=order, title=None, scale=altair.Scale(scheme="tableau20")
        )
        lines = altair.Chart(data).mark_line().encode(x=where, y=how_high, color=colour)
        ends = data.loc[data.groupby("arm")[x].idxmax()]
        names = (
            altair.Chart(ends)
            .mark_text(align="left", dx=4, fontSize=9)
            .encode(x=where, y=how_high, text="arm:N", color=colour)
        )
        return altair.layer(lines, names).properties(width=620, height=440)

    if len(lines):
        yield (
            "loss_by_tokens",
            along(lines, "tokens", "nats", "training loss, nats per token", log=False),
        )
        yield (
            "loss_by_seconds",
            along(lines, "seconds", "nats", "training loss, nats per token", log=True),
        )
    if len(angles):
        yield (
            "angle",
            along(
                angles, "tokens", "cosine", "cosine of the angle to backprop's gradient", log=False
            ),
        )
    if "relative_seconds" in table:
        long = table.melt(
            "arm", ["relative_seconds", "relative_bytes"], "what", "times the reference"
        )
        cost = (
            altair.Chart(long)
            .mark_bar()
            .encode(
                x=altair.X("times the reference:Q"),
                y=by_arm,
                color=altair.Color("what:N", legend=None),
            )
        )
        panels = cost.properties(width=260, height=height).facet(
            column=altair.Column("what:N", title=None)
        )
        yield "cost", panels.resolve_scale(x="independent")
