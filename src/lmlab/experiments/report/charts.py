"""The charts of a report, as Vega-Lite specifications: data in, a dict out, no styling but what a
chart means.

Colours and fonts come from the page, which draws a chart anew when its reader changes the scheme.
It also sets the list `hidden`: variants that the reader has switched off, in all charts at once.
Tables that come in hold a column `variant` with numbers, which stand for `names`: names may be long
and would fill the page.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import altair as alt
import pandas as pd

Spec = dict[str, Any]
CHECKED = False
"""Whether Altair checks each chart against Vega-Lite's schema, which takes as long as all the rest;
a test has it do so.
"""
ROW = 18
"""Height of a row of a heat map, in pixels."""
HEIGHT = 300
MANY = 1500
"""Marks above which a chart is painted on a canvas: as many elements of a page would make it
slow.
"""
DIGITS = 5
LINE = 21
"""Characters in a label that stands beside a bar."""
ROW_OF_BARS, ROW_WITH_LABEL = 24, 40
TITLE = 5
"""Room above each head's picture, in tokens."""


def _data(table: pd.DataFrame) -> alt.InlineData:
    """A table as rows of plain values, few digits each; what is missing or infinite is left out of
    its row.
    """
    rows = []
    for row in table.to_dict("records"):
        kept = {
            str(key): value
            for key, value in row.items()
            if value == value and _size(value) != float("inf")
        }
        rows.append(
            {
                key: float(f"{value:.{DIGITS}g}") if isinstance(value, float) else value
                for key, value in kept.items()
            }
        )
    return alt.InlineData(values=rows)


def _size(value: Any) -> float:
    """The size of a number, 0 of anything else."""
    return abs(value) if isinstance(value, int | float) else 0.0


def _finished(chart: Any, what: str, names: Sequence[str] = (), marks: int = 0) -> Spec:
    """`what` says in words what is seen, for those who do not see it."""
    if names:
        chart = chart.add_params(
            alt.param(name="names", value=list(names)), alt.param(name="hidden", value=[])
        )
    canvas = {"embedOptions": {"renderer": "canvas"}} if marks > MANY else {}
    spec: Spec = chart.properties(width="container", description=what, usermeta=canvas).to_dict(
        validate=CHECKED
    )
    spec["autosize"] = {
        "type": "fit" if spec["height"] == "container" else "fit-x",
        "contains": "padding",
    }
    return spec


def _shown(table: pd.DataFrame) -> Any:
    """A chart of the variants that are not hidden, by name."""
    named = alt.Chart(_data(table)).transform_calculate(name="names[datum.variant]")
    return named.transform_filter("indexof(hidden, datum.variant) < 0")


def _colour(names: Sequence[str]) -> alt.Color:
    return alt.Color(
        "name:N", scale=alt.Scale(domain=list(names)), legend=None
    )  # the page's own buttons are the legend


def _zoom() -> alt.Parameter:
    """Drag to move, turn the wheel with Ctrl to zoom, double-click to go back: a finger or a plain
    wheel moves the page.
    """
    return alt.selection_interval(
        bind="scales",
        name="zoom",
        translate="[mousedown, window:mouseup] > window:mousemove!",
        zoom="wheel![event.ctrlKey || event.metaKey]",
    )


def references(table: pd.DataFrame, names: Sequence[str]) -> Spec:
    """Bits per byte of variants and of references: columns what (short, no two alike), name (in
    full), bits and, for variants, variant. Long labels stand above their bars, where they are not
    cut.
    """
    above = table["what"].map(len).max() > LINE
    room = alt.Scale(
        domain=[0, 1.25 * max(table["bits"].max(), 1e-9)], nice=False
    )  # for the number behind each bar
    beside = None if above else alt.Axis(labelLimit=190, ticks=False, domain=False)
    base = alt.Chart(_data(table)).encode(
        x=alt.X("bits:Q", title=None, axis=None, scale=room),
        y=alt.Y("what:N", sort=table["what"].tolist(), title=None, axis=beside),
        tooltip=[
            alt.Tooltip("name:N", title=" "),
            alt.Tooltip("bits:Q", title="bits per byte", format=".4f"),
        ],
    )
    ours = (
        base.transform_filter("isValid(datum.variant)")
        .mark_bar(height=14)
        .encode(color=_colour(names))
    )
    others = base.transform_filter("!isValid(datum.variant)").mark_bar(height=14, style="reference")
    layers = [
        others,
        ours,
        base.mark_text(align="left", dx=5).encode(text=alt.Text("bits:Q", format=".3f")),
    ]
    if above:
        label = base.mark_text(align="left", baseline="bottom", dy=-9).encode(
            x=alt.value(0), text="what:N"
        )
        layers.append(label)
    chart = alt.layer(*layers).properties(
        height=(ROW_WITH_LABEL if above else ROW_OF_BARS) * len(table)
    )
    return _finished(chart, "bits per byte of the models and of references, a bar each", names)


def curves(table: pd.DataFrame, names: Sequence[str], unit: str, reference: float | None) -> Spec:
    """Loss along training: columns variant, run, split, loss, and at least one of tokens, FLOPs,
    seconds and step.

    Readers choose which of those, and whether axes are logarithmic. `reference` is the loss of the
    n-gram, if it is known.
    """
    axes = [
        axis
        for axis in ("tokens", "flops", "seconds", "step")
        if axis in table and table[axis].notna().any()
    ]
    against = alt.param(
        name="against", value=axes[0], bind=alt.binding_radio(options=axes, name="against ")
    )
    log_x = alt.param(
        name="log_x", value=False, bind=alt.binding_checkbox(name="logarithmic across ")
    )
    log_y = alt.param(name="log_y", value=False, bind=alt.binding_checkbox(name="and upwards "))

    def ticks(log: str, format: str) -> alt.Axis:
        return alt.Axis(
            labelExpr=f"format({log} ? pow(10, datum.value) : datum.value, '{format}')", tickCount=6
        )

    free = alt.Scale(zero=False, nice=False)
    y = alt.Y("y:Q", title=f"{unit} (lower is better)", scale=free, axis=ticks("log_y", ".3~g"))
    lines = (
        _shown(table)
        .transform_calculate(amount="datum[against]")
        .transform_filter("isValid(datum.amount) && datum.amount > 0 && datum.loss > 0")
        .transform_calculate(
            x="log_x ? log(datum.amount) / LN10 : datum.amount",
            y="log_y ? log(datum.loss) / LN10 : datum.loss",
        )
        .encode(
            x=alt.X("x:Q", title=None, scale=free, axis=ticks("log_x", ".2~s")),
            y=y,
            color=_colour(names),
            detail="run:N",
            tooltip=[
                alt.Tooltip("name:N", title="variant"),
                "run:N",
                "split:N",
                *(alt.Tooltip(f"{axis}:Q", format=",.4~s") for axis in axes),
                alt.Tooltip("loss:Q", title=unit, format=".4f"),
            ],
        )
    )
    training, validation = (
        lines.transform_filter(f"datum.split == '{split}'") for split in ("training", "validation")
    )
    seen = (
        0.45 if len(table) <= 4 * table["run"].nunique() else 0
    )  # a line through a point or two is not
    layers = [
        training.mark_line(strokeWidth=1, opacity=0.45),
        training.mark_point(opacity=seen, size=50, filled=True),  # to be hovered over
        validation.mark_line(strokeWidth=2),
        validation.mark_point(filled=True, size=45, opacity=1),
    ]
    if reference is not None:
        level = alt.Chart(alt.InlineData(values=[{"loss": reference}])).transform_calculate(
            y="log_y ? log(datum.loss) / LN10 : datum.loss"
        )
        layers.append(level.mark_rule(style="reference-line").encode(y="y:Q"))
        named = level.mark_text(
            align="right",
            baseline="bottom",
            dy=-3,
            style="reference-word",
            text="Kneser-Ney n-gram",
        )
        layers.append(named.encode(x=alt.value("width"), y="y:Q"))
    chart = alt.layer(*layers).add_params(against, log_x, log_y).properties(height=HEIGHT + 40)
    chart.layer[0] = chart.layer[0].add_params(_zoom())
    return _finished(chart, "loss along training, a line for each run", names, marks=len(table))


def along(
    table: pd.DataFrame,
    names: Sequence[str],
    x: str,
    y: str,
    titles: tuple[str, str],
    what: str,
    height: int = HEIGHT,
) -> Spec:
    """One quantity against another: a line for each `run` of a variant."""
    lines = _shown(table).encode(
        x=alt.X(f"{x}:Q", title=titles[0], axis=alt.Axis(format=",.5~g", tickCount=6)),
        y=alt.Y(f"{y}:Q", title=titles[1], scale=alt.Scale(zero=False), axis=alt.Axis(tickCount=5)),
        color=_colour(names),
        detail="run:N",
        tooltip=[
            "name:N",
            alt.Tooltip(f"{x}:Q", format=",.6~g"),
            alt.Tooltip(f"{y}:Q", format=".4~g"),
        ],
    )
    few = len(table) <= 12 * table["run"].nunique()
    points = (
        lines.mark_point(filled=True, size=40, opacity=1)
        if few
        else lines.mark_point(size=50, opacity=0)
    )
    chart = alt.layer(lines.mark_line(strokeWidth=1.75), points.add_params(_zoom())).properties(
        height=height
    )
    return _finished(chart, what, names, marks=len(table))


def reliability(table: pd.DataFrame, names: Sequence[str]) -> Spec:
    """How often the likeliest token was right, by how sure the model was; columns confidence,
    accuracy, predictions.
    """
    whole = alt.Scale(domain=[0, 1])
    x = alt.X(
        "confidence:Q",
        title="how sure the model was",
        scale=whole,
        axis=alt.Axis(format="%", tickCount=5),
    )
    y = alt.Y(
        "accuracy:Q",
        title="how often it was right",
        scale=whole,
        axis=alt.Axis(format="%", tickCount=5),
    )
    ends = alt.InlineData(
        values=[{"confidence": 0, "accuracy": 0}, {"confidence": 1, "accuracy": 1}]
    )
    perfect = alt.Chart(ends).mark_line(style="reference-line").encode(x=x, y=y)
    lines = _shown(table).encode(
        x=x,
        y=y,
        color=_colour(names),
        detail="run:N",
        tooltip=[
            "name:N",
            alt.Tooltip("confidence:Q", format=".1%"),
            alt.Tooltip("accuracy:Q", format=".1%"),
            alt.Tooltip("predictions:Q", format=","),
        ],
    )
    sizes = alt.Size("predictions:Q", legend=None, scale=alt.Scale(range=[15, 160]))
    points = lines.mark_point(filled=True, opacity=0.9).encode(size=sizes)
    chart = alt.layer(perfect, lines.mark_line(strokeWidth=1.5), points).properties(
        height=HEIGHT + 60
    )
    return _finished(
        chart, "how often the likeliest token was right, by how sure the model was", names
    )


def classes(table: pd.DataFrame, names: Sequence[str]) -> Spec:
    """Cost by class of character: columns variant, class, bits, share_of_bytes, share_of_nats. A
    point for each variant.
    """
    order = table.drop_duplicates("class")["class"].tolist()
    y = alt.Y(
        "class:N", sort=order, title=None, axis=alt.Axis(labelLimit=180, grid=True, ticks=False)
    )
    points = (
        _shown(table)
        .mark_point(filled=True, size=90, opacity=0.9)
        .encode(
            x=alt.X(
                "bits:Q",
                title="bits per byte",
                scale=alt.Scale(zero=True),
                axis=alt.Axis(tickCount=5),
            ),
            y=y,
            color=_colour(names),
            tooltip=[
                "name:N",
                "class:N",
                alt.Tooltip("bits:Q", format=".4f"),
                alt.Tooltip("share_of_bytes:Q", title="of the text", format=".1%"),
                alt.Tooltip("share_of_nats:Q", title="of the cost", format=".1%"),
            ],
        )
    )
    return _finished(
        points.properties(height=28 * len(order)), "bits per byte by class of character", names
    )


def heat_map(table: pd.DataFrame) -> Spec:
    """Readings by place and step: columns what, where, step, value and shade, which is 0 to 1
    within each `what`.

    All kinds of readings are of the same places; readers choose one.
    """
    kinds, places = list(dict.fromkeys(table["what"])), list(dict.fromkeys(table["where"]))
    bind = alt.binding_select(options=kinds, name="reading ") if len(kinds) > 1 else alt.Undefined
    base = (
        alt.Chart(_data(table))
        .transform_filter("datum.what == what")
        .encode(
            x=alt.X("step:O", title="step", axis=alt.Axis(labelAngle=0, ticks=False, domain=False)),
            y=alt.Y(
                "where:N",
                sort=places,
                title=None,
                axis=alt.Axis(labelLimit=230, ticks=False, domain=False),
            ),
            tooltip=[
                "what:N",
                "where:N",
                alt.Tooltip("step:Q", format=","),
                alt.Tooltip("value:Q", format=".4~g"),
            ],
        )
    )
    shade = alt.Color("shade:Q", scale=alt.Scale(domain=[0, 1], range="heatmap"), legend=None)
    words = base.mark_text().encode(
        text=alt.Text("value:Q", format=".3~g"), color=_readable("shade")
    )
    both = alt.layer(base.mark_rect().encode(color=shade), words).resolve_scale(color="independent")
    both = both.add_params(alt.param(name="what", value=kinds[0], bind=bind)).properties(
        height=max(60, ROW * len(places))
    )
    return _finished(both, "readings of probes by place in the model and step", marks=len(table))


def _readable(shade: str) -> alt.Color:
    """For text on a cell of a heat map: the colour that its shade leaves readable."""
    scale = alt.Scale(
        type="threshold", domain=[0.55], range="ordinal"
    )  # the page's two colours for it
    return alt.Color(f"{shade}:Q", scale=scale, legend=None)


def lens(pictures: Mapping[str, Any]) -> Spec:
    """What each block would say comes next, and how surely, at each token of the chosen text; the
    last block above.
    """
    tokens = pictures["tokens"]
    following = [*tokens[1:], None]
    rows = [
        {
            "at": place,
            "block": f"block {block}",
            "guess": guess,
            "sure": sure,
            "right": guess == following[place],
        }
        for block, layer in reversed(list(enumerate(pictures["lens"])))
        for place, (guess, sure) in enumerate(zip(*layer, strict=True))
    ]
    table = pd.DataFrame(rows)
    base = (
        alt.Chart(_data(table))
        .transform_calculate(after="tokens[datum.at]", next="tokens[datum.at + 1]")
        .encode(
            x=alt.X("at:O", title="after", axis=_tokens()),
            y=alt.Y(
                "block:N",
                sort=list(dict.fromkeys(table["block"])),
                title=None,
                axis=alt.Axis(ticks=False, domain=False),
            ),
            tooltip=[
                "block:N",
                alt.Tooltip("after:N"),
                alt.Tooltip("guess:N", title="likeliest next"),
                alt.Tooltip("sure:Q", title="its probability", format=".1%"),
                alt.Tooltip("next:N", title="what came"),
            ],
        )
    )
    cells = base.mark_rect().encode(
        color=alt.Color("sure:Q", scale=alt.Scale(domain=[0, 1], range="heatmap"), legend=None)
    )
    words = base.mark_text(fontSize=12).encode(text="guess:N", color=_readable("sure"))
    right = base.transform_filter("datum.right").mark_rect(filled=False, style="right", opacity=1)
    chart = alt.layer(cells, words, right).resolve_scale(color="independent")
    chart = chart.add_params(alt.param(name="tokens", value=list(tokens)))
    return _finished(
        chart.properties(height=26 * len(pictures["lens"])),
        "the likeliest next token behind each block, by its probability",
    )


def heads(pictures: Mapping[str, Any]) -> tuple[Spec, tuple[float, float]] | None:
    """All heads side by side, as small pictures of where each looks, with the sides of the whole;
    None without heads.
    """
    tokens, blocks = pictures["tokens"], pictures["attention"]
    count = max(map(len, blocks), default=0)
    if not count:
        return None
    columns = count * max(1, 4 // count)
    wide = len(tokens) + 2
    pixels, titles = [], []
    number = 0
    for block, of_block in enumerate(blocks):
        for head, weights in enumerate(of_block):
            left, top = number % columns * wide, number // columns * (wide + TITLE) + TITLE
            number += 1
            titles.append({"title": f"{block}.{head}", "left": left, "top": top})
            pixels += [
                {
                    "h": f"block {block}, head {head}",
                    "x": left,
                    "y": top + at,
                    "at": at,
                    "w": _thousandths(row[: at + 1]),
                }
                for at, row in enumerate(weights)
            ]
    sides = (float(columns * wide - 2), float(-(-number // columns) * (wide + TITLE)))
    rectangles = (
        alt.Chart(alt.InlineData(values=pixels))
        .transform_flatten(["w"], ["weight"])
        .transform_window(count="row_number()", groupby=["h", "at"])
        .transform_filter("datum.weight > 4")
        .transform_calculate(
            x2="datum.x + datum.count",
            x1="datum.x + datum.count - 1",
            y2="datum.y + 1",
            share="datum.weight / 1000",
            token="tokens[datum.at]",
            seen="tokens[datum.count - 1]",
        )
        .mark_rect()
        .encode(
            x=alt.X("x1:Q", scale=alt.Scale(domain=[0, sides[0]], nice=False), axis=None),
            x2="x2:Q",
            y=alt.Y("y:Q", scale=alt.Scale(domain=[sides[1], 0], nice=False), axis=None),
            y2="y2:Q",
            color=alt.Color(
                "share:Q", scale=alt.Scale(domain=[0, 1], range="heatmap"), legend=None
            ),
            tooltip=[
                alt.Tooltip("h:N", title="head"),
                alt.Tooltip("token:N", title="from"),
                alt.Tooltip("seen:N", title="looks at"),
                alt.Tooltip("share:Q", title="weight", format=".1%"),
            ],
        )
    )
    words = alt.Chart(alt.InlineData(values=titles)).mark_text(
        align="left", baseline="bottom", dy=-2, style="reference-word"
    )
    words = words.encode(x="left:Q", y="top:Q", text="title:N")
    chart = alt.layer(rectangles.add_params(_zoom()), words).add_params(
        alt.param(name="tokens", value=list(tokens))
    )
    marks = number * len(tokens) ** 2 // 2
    return _finished(
        chart.properties(height="container"), "where each head of each block looks", marks=marks
    ), sides


def attention(pictures: Mapping[str, Any]) -> Spec:
    """One head at a time, large: from each token (rows) to those before it (columns)."""
    tokens = pictures["tokens"]
    rows = [
        {"head": f"block {block}, head {head}", "at": at, "w": _thousandths(row[: at + 1])}
        for block, of_block in enumerate(pictures["attention"])
        for head, weights in enumerate(of_block)
        for at, row in enumerate(weights)
    ]
    names = list(dict.fromkeys(row["head"] for row in rows))
    which = alt.param(
        name="head", value=names[-1], bind=alt.binding_select(options=names, name="head ")
    )
    chart = (
        alt.Chart(alt.InlineData(values=rows))
        .transform_filter("datum.head == head")
        .transform_flatten(["w"], ["weight"])
        .transform_window(count="row_number()", groupby=["at"])
        .transform_calculate(
            sees="datum.count - 1",
            share="datum.weight / 1000",
            token="tokens[datum.at]",
            seen="tokens[datum.count - 1]",
        )
        .mark_rect()
        .encode(
            x=alt.X("sees:O", title="to", axis=_tokens()),
            y=alt.Y("at:O", title="from", axis=_tokens()),
            color=alt.Color(
                "share:Q", scale=alt.Scale(domain=[0, 1], range="heatmap"), legend=None
            ),
            tooltip=[
                alt.Tooltip("token:N", title="from"),
                alt.Tooltip("seen:N", title="looks at"),
                alt.Tooltip("share:Q", title="weight", format=".1%"),
            ],
        )
        .add_params(which, alt.param(name="tokens", value=list(tokens)))
    )
    return _finished(
        chart.properties(height=15 * len(tokens)), "where one head looks", marks=len(tokens) ** 2
    )


def _thousandths(weights: Sequence[float]) -> list[int]:
    return [round(1000 * weight) if weight == weight else 0 for weight in weights]


def _tokens() -> alt.Axis:
    """An axis of places in the text, each with its token."""
    return alt.Axis(
        labelExpr="tokens[datum.value]",
        labelAngle=0,
        labelOverlap=False,
        ticks=False,
        domain=False,
        labelLimit=60,
    )
