"""The charts of a report, as Vega-Lite specifications: data in, a dict out, no styling but what a chart means.

Colours, fonts and width come from the page, which draws a chart anew when its reader changes the scheme.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import altair as alt
import pandas as pd

Spec = dict[str, Any]
RUN = "run"
"""The column that tells runs apart in every table."""
ROW = 18
"""Height of a row of a heat map, in pixels."""
HEIGHT = 300


def _finished(chart: Any) -> Spec:
    with alt.data_transformers.enable("default", max_rows=None):
        spec: Spec = chart.properties(width="container", autosize=alt.AutoSizeParams(type="fit-x")).to_dict()
    return spec


def _colour(runs: Sequence[str], picked: Any) -> tuple[alt.Color, Any]:
    """Runs by colour, and how visible each is: a click on the legend toggles them."""
    legend = alt.Legend(orient="top", title=None, columns=1, labelLimit=300) if len(runs) > 1 else None
    return alt.Color(f"{RUN}:N", sort=list(runs), legend=legend), alt.condition(picked, alt.value(1.0), alt.value(0.08))


def curves(table: pd.DataFrame, runs: Sequence[str]) -> Spec:
    """Loss along training: columns run, split, nats, and at least one of tokens, operations and seconds to choose from."""
    axes = [axis for axis in ("tokens", "operations", "seconds") if axis in table and table[axis].notna().any()]
    against = alt.param(name="against", value=axes[0], bind=alt.binding_radio(options=axes, name="against "))
    scale = alt.param(name="logarithmic", value=False, bind=alt.binding_checkbox(name="logarithmic "))
    picked = alt.selection_point(fields=[RUN], bind="legend", toggle="true")
    colour, visible = _colour(runs, picked)
    lines = (
        alt.Chart(table)
        .transform_calculate(amount="datum[against]")
        .transform_calculate(x="logarithmic ? log(datum.amount) / LN10 : datum.amount")
        .transform_filter("isValid(datum.amount) && datum.amount > 0")
        .encode(
            x=alt.X(
                "x:Q",
                title=None,
                scale=alt.Scale(zero=False, nice=False),
                axis=alt.Axis(labelExpr="format(logarithmic ? pow(10, datum.value) : datum.value, '.2~s')", tickCount=6),
            ),
            y=alt.Y("nats:Q", title="nats per token", scale=alt.Scale(zero=False)),
            color=colour,
            opacity=visible,
            strokeDash=alt.StrokeDash(
                "split:N", sort=["validation", "training"], legend=alt.Legend(orient="top", title=None, symbolOpacity=1)
            ),
            tooltip=[f"{RUN}:N", "split:N", *(alt.Tooltip(f"{axis}:Q", format=",.4~s") for axis in axes),
                     alt.Tooltip("nats:Q", format=".4f")],
        )
    )  # fmt: skip
    strokes = lines.mark_line(strokeWidth=2)
    dots = lines.transform_filter("datum.split == 'validation'").mark_point(filled=True, size=50)
    chart = alt.layer(strokes, dots).add_params(against, scale, picked).properties(height=HEIGHT)
    return _finished(chart.add_params(alt.selection_interval(bind="scales", encodings=["x", "y"], name="zoom")))


def along(table: pd.DataFrame, runs: Sequence[str], x: str, y: str, titles: tuple[str, str], marks: bool = False) -> Spec:
    """One quantity against another, a line for each run; `marks` shows the points themselves."""
    picked = alt.selection_point(fields=[RUN], bind="legend", toggle="true")
    colour, visible = _colour(runs, picked)
    chart = alt.Chart(table).mark_line(point=marks, strokeWidth=2).encode(
        x=alt.X(f"{x}:Q", title=titles[0]), y=alt.Y(f"{y}:Q", title=titles[1], scale=alt.Scale(zero=False)),
        color=colour, opacity=visible,
        tooltip=[f"{RUN}:N", alt.Tooltip(f"{x}:Q", format=".4~g"), alt.Tooltip(f"{y}:Q", format=".4~g")],
    )  # fmt: skip
    return _finished(chart.add_params(picked).properties(height=HEIGHT))


def reliability(table: pd.DataFrame, runs: Sequence[str]) -> Spec:
    """How often the likeliest token was right, by how sure the model was; columns confidence, accuracy, predictions."""
    picked = alt.selection_point(fields=[RUN], bind="legend", toggle="true")
    colour, visible = _colour(runs, picked)
    whole = alt.Scale(domain=[0, 1])
    perfect = alt.Chart(pd.DataFrame({"x": [0, 1]})).mark_line(strokeDash=[3, 3], color="gray", strokeWidth=1)
    lines = alt.Chart(table).mark_line(point=True, strokeWidth=2).encode(
        x=alt.X("confidence:Q", title="how sure the model was", scale=whole, axis=alt.Axis(format="%")),
        y=alt.Y("accuracy:Q", title="how often it was right", scale=whole, axis=alt.Axis(format="%")),
        color=colour, opacity=visible,
        tooltip=[f"{RUN}:N", alt.Tooltip("confidence:Q", format=".1%"), alt.Tooltip("accuracy:Q", format=".1%"),
                 alt.Tooltip("predictions:Q", format=",")],
    )  # fmt: skip
    line = perfect.encode(x=alt.X("x:Q"), y=alt.Y("x:Q"))
    return _finished(alt.layer(line, lines.add_params(picked)).properties(height=HEIGHT))


def bars(table: pd.DataFrame, runs: Sequence[str], row: str, value: str, title: str) -> Spec:
    """A bar for each row, and within it for each run, the rows in the table's order."""
    rows = list(dict.fromkeys(table[row]))
    picked = alt.selection_point(fields=[RUN], bind="legend", toggle="true")
    colour, visible = _colour(runs, picked)
    chart = alt.Chart(table).mark_bar().encode(
        y=alt.Y(f"{row}:N", sort=rows, title=None), x=alt.X(f"{value}:Q", title=title), color=colour, opacity=visible,
        yOffset=alt.YOffset(f"{RUN}:N", sort=list(runs)),
        tooltip=[f"{RUN}:N", f"{row}:N", alt.Tooltip(f"{value}:Q", format=".4f")],
    )  # fmt: skip
    return _finished(chart.add_params(picked).properties(height=len(rows) * max(ROW, 9 * len(runs))))


def heat_map(table: pd.DataFrame, runs: Sequence[str]) -> Spec:
    """What probes read, over training and the model: columns run, what, where, step and value; what and run are chosen."""
    kinds, places = list(dict.fromkeys(table["what"])), list(dict.fromkeys(table["where"]))
    lively = [kind for kind in kinds if table.loc[table["what"] == kind, "value"].nunique() > 1]
    what = alt.param(name="what", value=(lively or kinds)[0], bind=alt.binding_select(options=kinds, name="reading "))
    choice = alt.binding_select(options=list(runs), name="run ") if len(runs) > 1 else alt.Undefined
    run = alt.param(name="of", value=runs[0], bind=choice)
    chart = (
        alt.Chart(table)
        .transform_filter("datum.what == what && datum.run == of")
        .mark_rect()
        .encode(
            x=alt.X("step:O", title="step", axis=alt.Axis(labelAngle=0)),
            y=alt.Y("where:N", sort=places, title=None, axis=alt.Axis(labelLimit=190)),
            color=alt.Color("value:Q", scale=alt.Scale(scheme="viridis"), legend=alt.Legend(title=None, orient="top")),
            tooltip=["what:N", "where:N", "step:Q", alt.Tooltip("value:Q", format=".4~g")],
        )
    )
    return _finished(chart.add_params(what, run).properties(height=alt.Step(ROW)))


def attention(pictures: Mapping[str, Any]) -> Spec | None:
    """Where each head looks on the chosen text, as `closeup` wrote it; None where there are no heads."""
    tokens = _numbered(pictures["tokens"])
    rows = [
        {"head": f"block {block}, head {number}", "at": tokens[t], "sees": tokens[s], "weight": weight}
        for block, heads in enumerate(pictures["attention"])
        for number, weights in enumerate(heads)
        for t, row in enumerate(weights)
        for s, weight in enumerate(row[: t + 1])
    ]
    if not rows:
        return None
    heads = list(dict.fromkeys(row["head"] for row in rows))
    which = alt.param(name="head", value=heads[-1], bind=alt.binding_select(options=heads, name="head "))
    axis = alt.Axis(labelExpr=_TOKEN, labelAngle=0, labelOverlap=False)
    chart = alt.Chart(pd.DataFrame(rows)).transform_filter("datum.head == head").mark_rect().encode(
        x=alt.X("sees:N", sort=tokens, title="what is looked at", axis=axis),
        y=alt.Y("at:N", sort=tokens, title="from where", axis=axis),
        color=alt.Color("weight:Q", scale=alt.Scale(scheme="viridis", domain=[0, 1]), legend=None),
        tooltip=[alt.Tooltip("at:N", title="token"), alt.Tooltip("sees:N", title="looks at"),
                 alt.Tooltip("weight:Q", format=".1%")],
    )  # fmt: skip
    return _finished(chart.add_params(which).properties(height=alt.Step(14)))


def lens(pictures: Mapping[str, Any]) -> Spec:
    """What each block would say comes next, and how surely, at each token of the chosen text; the last block above."""
    tokens = _numbered(pictures["tokens"])
    rows = [
        {"after": tokens[t], "block": f"block {block}", "guess": guess, "probability": probability}
        for block, (guesses, sure) in reversed(list(enumerate(pictures["lens"])))
        for t, (guess, probability) in enumerate(zip(guesses, sure, strict=True))
    ]
    blocks = list(dict.fromkeys(row["block"] for row in rows))
    base = alt.Chart(pd.DataFrame(rows)).encode(
        x=alt.X("after:N", sort=tokens, title="after", axis=alt.Axis(labelExpr=_TOKEN, labelAngle=0, labelOverlap=False)),
        y=alt.Y("block:N", sort=blocks, title=None),
        tooltip=[alt.Tooltip("after:N"), "block:N", "guess:N", alt.Tooltip("probability:Q", format=".1%")],
    )  # fmt: skip
    cells = base.mark_rect().encode(
        color=alt.Color("probability:Q", scale=alt.Scale(scheme="viridis", domain=[0, 1]),
                        legend=alt.Legend(orient="top", format="%", title="probability of the guess")),
    )  # fmt: skip
    words = base.mark_text(fontSize=11).encode(
        text="guess:N", color=alt.condition("datum.probability > 0.6", alt.value("black"), alt.value("white"))
    )
    return _finished(alt.layer(cells, words).properties(height=alt.Step(26)))


def intervals(table: pd.DataFrame) -> Spec:
    """Differences from the baseline with their intervals: columns variant, measure, difference, low, high and verdict."""
    measures = list(dict.fromkeys(table["measure"]))
    which = alt.param(name="measure", value=measures[0], bind=alt.binding_select(options=measures, name="measure "))
    base = alt.Chart(table).transform_filter("datum.measure == measure")
    by = alt.Y("variant:N", title=None, sort=list(dict.fromkeys(table["variant"])), axis=alt.Axis(labelLimit=260))
    zero = alt.Chart(pd.DataFrame({"zero": [0]})).mark_rule(strokeDash=[3, 3], color="gray").encode(x="zero:Q")
    rules = base.transform_filter("isValid(datum.low)").mark_rule(strokeWidth=2).encode(x="low:Q", x2="high:Q", y=by)
    points = base.mark_point(filled=True, size=70).encode(
        x=alt.X("difference:Q", title="difference from the baseline"), y=by,
        tooltip=["variant:N", "verdict:N", *(alt.Tooltip(f"{x}:Q", format=".4~g") for x in ("difference", "low", "high"))],
    )  # fmt: skip
    height = max(60, 24 * table["variant"].nunique())
    return _finished(alt.layer(zero, rules, points).add_params(which).properties(height=height))


_TOKEN = "split(datum.label, ' ')[1]"
"""Tokens are numbered in the data, since one may stand in a text more than once; the axis shows what follows the number."""


def _numbered(tokens: Sequence[str]) -> list[str]:
    return [f"{place} {token}" for place, token in enumerate(tokens)]
