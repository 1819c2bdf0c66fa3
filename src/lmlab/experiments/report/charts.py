"""The charts of a report as Vega-Lite specifications, with no styling but what carries meaning.

Colours and fonts come from the page, which draws a chart anew when its reader changes the scheme.
It also sets the list `hidden`: variants that the reader has switched off, in all charts at once.
Tables that come in hold a column `variant` with numbers, which stand for `names`: names may be long
and would fill the page.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
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
MOST_COLUMNS = 14
"""Columns of a heat map whose cells have room for their numbers."""
AMOUNTS = ("tokens", "bytes", "flops", "seconds", "step")
"""What a loss may be shown against."""
AMOUNT_LABELS = {"flops": "FLOPs"}
TITLE = 5
"""Room above each head's picture, in tokens."""


def _data(table: pd.DataFrame) -> alt.InlineData:
    """A table as rows of plain values with few digits, without what is missing or infinite."""
    rows = []
    for record in table.to_dict("records"):
        row = {}
        for key, value in record.items():
            if isinstance(value, float):
                if not math.isfinite(value):
                    continue
                value = float(f"{value:.{DIGITS}g}")
            row[str(key)] = value
        rows.append(row)
    return alt.InlineData(values=rows)


def _finished(chart: Any, description: str, names: Sequence[str] = (), marks: int = 0) -> Spec:
    """The specification; `description` is what those hear who do not see the chart."""
    if names:
        names_param = alt.param(name="names", value=list(names))
        chart = chart.add_params(names_param, alt.param(name="hidden", value=[]))
    canvas = {"embedOptions": {"renderer": "canvas"}} if marks > MANY else {}
    chart = chart.properties(width="container", description=description, usermeta=canvas)
    spec: Spec = chart.to_dict(validate=CHECKED)
    fit = "fit" if spec["height"] == "container" else "fit-x"
    spec["autosize"] = {"type": fit, "contains": "padding"}
    return spec


def _shown(table: pd.DataFrame) -> Any:
    """A chart of the variants that are not hidden, by name."""
    named = alt.Chart(_data(table)).transform_calculate(name="names[datum.variant]")
    return named.transform_filter("indexof(hidden, datum.variant) < 0")


def _colour(names: Sequence[str]) -> alt.Color:
    """A colour for each variant; the page's own buttons are the legend."""
    return alt.Color("name:N", scale=alt.Scale(domain=list(names)), legend=None)


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
    """Bits per byte of variants and of references, a bar each.

    Columns what (short, no two alike), name (in full), bits and, for variants, variant. Long labels
    stand above their bars, where they are not cut.
    """
    above = table["what"].map(len).max() > LINE
    most = max(table["bits"].max(), 1e-9)
    with_room_for_numbers = alt.Scale(domain=[0, 1.25 * most], nice=False)
    label_axis = None if above else _bare_axis()
    base = alt.Chart(_data(table)).encode(
        x=alt.X("bits:Q", title=None, axis=None, scale=with_room_for_numbers),
        y=alt.Y("what:N", sort=table["what"].tolist(), title=None, axis=label_axis),
        tooltip=[
            alt.Tooltip("name:N", title=" "),
            alt.Tooltip("bits:Q", title="bits per byte", format=".4f"),
        ],
    )
    variants = base.transform_filter("isValid(datum.variant)").mark_bar(height=14)
    others = base.transform_filter("!isValid(datum.variant)").mark_bar(height=14, style="reference")
    numbers = base.mark_text(align="left", dx=5).encode(text=alt.Text("bits:Q", format=".3f"))
    layers = [others, variants.encode(color=_colour(names)), numbers]
    if above:
        label = base.mark_text(align="left", baseline="bottom", dy=-9)
        layers.append(label.encode(x=alt.value(0), text="what:N"))
    row = ROW_WITH_LABEL if above else ROW_OF_BARS
    chart = alt.layer(*layers).properties(height=row * len(table))
    return _finished(chart, "bits per byte of the models and of references, a bar each", names)


LOG_Y = "log_y ? log(datum.loss) / LN10 : datum.loss"


def curves(table: pd.DataFrame, names: Sequence[str], unit: str, reference: float | None) -> Spec:
    """Loss along training, a line for each run.

    Columns variant, run, split, loss, and at least one of AMOUNTS; readers
    choose which of those, and whether axes are logarithmic. `reference` is the loss of the n-gram
    model, if it is known.
    """
    known = [name for name in AMOUNTS if name in table and table[name].notna().any()]
    labels = [AMOUNT_LABELS.get(name, name) for name in known]
    choices = alt.binding_radio(options=known, labels=labels, name="against ")
    against = alt.param(name="against", value=known[0], bind=choices)
    log_x = alt.param(name="log_x", value=False, bind=alt.binding_checkbox(name="log x "))
    log_y = alt.param(name="log_y", value=False, bind=alt.binding_checkbox(name="log y "))
    free = alt.Scale(zero=False, nice=False)
    y_title = f"{unit} (lower is better)"
    lines = (
        _shown(table)
        .transform_calculate(amount="datum[against]")
        .transform_filter("isValid(datum.amount) && datum.amount > 0 && datum.loss > 0")
        .transform_calculate(x="log_x ? log(datum.amount) / LN10 : datum.amount", y=LOG_Y)
        .encode(
            x=alt.X("x:Q", title=None, scale=free, axis=_log_ticks("log_x", ".2~s")),
            y=alt.Y("y:Q", title=y_title, scale=free, axis=_log_ticks("log_y", ".3~g")),
            color=_colour(names),
            detail="run:N",
            tooltip=[
                alt.Tooltip("name:N", title="variant"),
                "run:N",
                "split:N",
                *(alt.Tooltip(f"{name}:Q", format=",.4~s") for name in known),
                alt.Tooltip("loss:Q", title=unit, format=".4f"),
            ],
        )
    )
    training = lines.transform_filter("datum.split == 'training'")
    validation = lines.transform_filter("datum.split == 'validation'")
    # a line through a point or two cannot be seen, so points are; otherwise they only take hovers
    few_points = len(table) <= 4 * table["run"].nunique()
    layers = [
        training.mark_line(strokeWidth=1, opacity=0.45),
        training.mark_point(opacity=0.45 if few_points else 0, size=50, filled=True),
        validation.mark_line(strokeWidth=2),
        validation.mark_point(filled=True, size=45, opacity=1),
    ]
    if reference is not None:
        layers += _level(reference, "Kneser-Ney n-gram")
    chart = alt.layer(*layers).add_params(against, log_x, log_y).properties(height=HEIGHT + 40)
    chart.layer[0] = chart.layer[0].add_params(_zoom())
    return _finished(chart, "loss along training, a line for each run", names, marks=len(table))


def _log_ticks(is_log: str, number_format: str) -> alt.Axis:
    """An axis whose values are decimal logarithms where the param `is_log` is true."""
    value = f"{is_log} ? pow(10, datum.value) : datum.value"
    return alt.Axis(labelExpr=f"format({value}, '{number_format}')", tickCount=6)


def _level(loss: float, name: str) -> list[Any]:
    """A dashed line across the chart of losses, with its name."""
    level = alt.Chart(alt.InlineData(values=[{"loss": loss}])).transform_calculate(y=LOG_Y)
    label = level.mark_text(
        align="right", baseline="bottom", dy=-3, style="reference-word", text=name
    )
    line = level.mark_rule(style="reference-line").encode(y="y:Q")
    return [line, label.encode(x=alt.value("width"), y="y:Q")]


def along(
    table: pd.DataFrame,
    names: Sequence[str],
    x: str,
    y: str,
    titles: tuple[str, str],
    description: str,
    height: int = HEIGHT,
) -> Spec:
    """One quantity against another: a line for each `run` of a variant."""
    x_axis = alt.Axis(format=",.5~g", tickCount=6)
    lines = _shown(table).encode(
        x=alt.X(f"{x}:Q", title=titles[0], axis=x_axis),
        y=alt.Y(f"{y}:Q", title=titles[1], scale=alt.Scale(zero=False), axis=alt.Axis(tickCount=5)),
        color=_colour(names),
        detail="run:N",
        tooltip=[
            "name:N",
            alt.Tooltip(f"{x}:Q", format=",.6~g"),
            alt.Tooltip(f"{y}:Q", format=".4~g"),
        ],
    )
    few_points = len(table) <= 12 * table["run"].nunique()
    visible = lines.mark_point(filled=True, size=40, opacity=1)
    points = visible if few_points else lines.mark_point(size=50, opacity=0)
    layers = (lines.mark_line(strokeWidth=1.75), points.add_params(_zoom()))
    chart = alt.layer(*layers).properties(height=height)
    return _finished(chart, description, names, marks=len(table))


def reliability(table: pd.DataFrame, names: Sequence[str]) -> Spec:
    """Accuracy against confidence: columns confidence, accuracy, predictions."""
    unit = alt.Scale(domain=[0, 1])
    percent = alt.Axis(format="%", tickCount=5)
    x = alt.X("confidence:Q", title="confidence", scale=unit, axis=percent)
    y = alt.Y("accuracy:Q", title="accuracy", scale=unit, axis=percent)
    ends = [{"confidence": 0, "accuracy": 0}, {"confidence": 1, "accuracy": 1}]
    diagonal = alt.Chart(alt.InlineData(values=ends)).mark_line(style="reference-line")
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
    layers = (diagonal.encode(x=x, y=y), lines.mark_line(strokeWidth=1.5), points)
    chart = alt.layer(*layers).properties(height=HEIGHT + 60)
    description = "how often the likeliest token was right, by its probability"
    return _finished(chart, description, names)


def classes(table: pd.DataFrame, names: Sequence[str]) -> Spec:
    """Loss by class of character, a point for each variant.

    Columns variant, class, bits, share_of_bytes, share_of_nats.
    """
    order = table.drop_duplicates("class")["class"].tolist()
    axis = alt.Axis(labelLimit=0, grid=True, ticks=False)
    points = _shown(table).mark_point(filled=True, size=90, opacity=0.9)
    points = points.encode(
        x=alt.X(
            "bits:Q", title="bits per byte", scale=alt.Scale(zero=True), axis=alt.Axis(tickCount=5)
        ),
        y=alt.Y("class:N", sort=order, title=None, axis=axis),
        color=_colour(names),
        tooltip=[
            "name:N",
            "class:N",
            alt.Tooltip("bits:Q", format=".4f"),
            alt.Tooltip("share_of_bytes:Q", title="of the text", format=".1%"),
            alt.Tooltip("share_of_nats:Q", title="of the cross-entropy", format=".1%"),
        ],
    )
    chart = points.properties(height=28 * len(order))
    return _finished(chart, "bits per byte by class of character", names)


def heat_map(table: pd.DataFrame) -> Spec:
    """Readings by place and step: columns what, where, step, value and shade, 0 to 1.

    All measures are of the same places; readers choose one.
    """
    measures = list(dict.fromkeys(table["what"]))
    places = list(dict.fromkeys(table["where"]))
    select = alt.binding_select(options=measures, name="measure ")
    bind = select if len(measures) > 1 else alt.Undefined
    step_axis = alt.Axis(labelAngle=0, ticks=False, domain=False)
    base = alt.Chart(_data(table)).transform_filter("datum.what == what")
    base = base.encode(
        x=alt.X("step:O", title="step", axis=step_axis),
        y=alt.Y("where:N", sort=places, title=None, axis=_bare_axis()),
        tooltip=[
            alt.Tooltip("what:N", title="measure"),
            "where:N",
            alt.Tooltip("step:Q", format=","),
            alt.Tooltip("value:Q", format=".4~g"),
        ],
    )
    layers = [base.mark_rect().encode(color=_shade_of("shade"))]
    if table["step"].nunique() <= MOST_COLUMNS:
        number = alt.Text("value:Q", format=".3~g")
        layers.append(base.mark_text().encode(text=number, color=_readable("shade")))
    chart = alt.layer(*layers).resolve_scale(color="independent")
    chart = chart.add_params(alt.param(name="what", value=measures[0], bind=bind))
    chart = chart.properties(height=max(60, ROW * len(places)))
    description = "what probes measured by place in the model and step"
    return _finished(chart, description, marks=len(table))


@dataclass(frozen=True)
class CloseUp:
    """data/probes/close_up.json: a model at work on one text."""

    tokens: Sequence[str]
    attention: Sequence[Sequence[Sequence[Sequence[float]]]]
    """Weights by block, head, token and token attended to."""
    lens: Sequence[tuple[Sequence[str], Sequence[float]]]
    """By block the likeliest next tokens and their probabilities, one for each token."""


def lens(close_up: CloseUp) -> Spec:
    """What each block's output would predict, at each token of the text; the last block on top."""
    following = [*close_up.tokens[1:], None]
    rows = []
    for block, (guesses, probabilities) in reversed(list(enumerate(close_up.lens))):
        for place, (guess, probability) in enumerate(zip(guesses, probabilities, strict=True)):
            rows.append(
                {
                    "place": place,
                    "block": f"block {block}",
                    "guess": guess,
                    "probability": probability,
                    "right": guess == following[place],
                }
            )
    table = pd.DataFrame(rows)
    blocks = list(dict.fromkeys(table["block"]))
    base = alt.Chart(_data(table)).transform_calculate(
        after="tokens[datum.place]", next="tokens[datum.place + 1]"
    )
    base = base.encode(
        x=alt.X("place:O", title="after", axis=_tokens(close_up.tokens)),
        y=alt.Y("block:N", sort=blocks, title=None, axis=_bare_axis()),
        tooltip=[
            "block:N",
            "after:N",
            alt.Tooltip("guess:N", title="likeliest next"),
            alt.Tooltip("probability:Q", format=".1%"),
            alt.Tooltip("next:N", title="what came"),
        ],
    )
    cells = base.mark_rect().encode(color=_shade_of("probability"))
    words = base.mark_text(fontSize=12).encode(text="guess:N", color=_readable("probability"))
    right = base.transform_filter("datum.right").mark_rect(filled=False, style="right", opacity=1)
    chart = alt.layer(cells, words, right).resolve_scale(color="independent")
    chart = chart.add_params(alt.param(name="tokens", value=list(close_up.tokens)))
    description = "the likeliest next token behind each block, by its probability"
    return _finished(chart.properties(height=26 * len(blocks)), description)


ATTENTION_TOOLTIP = [
    alt.Tooltip("token:N", title="from"),
    alt.Tooltip("seen:N", title="attends to"),
    alt.Tooltip("share:Q", title="weight", format=".1%"),
]


def heads(close_up: CloseUp) -> tuple[Spec, tuple[float, float]] | None:
    """All heads as small pictures side by side, and the sides of the whole; None without heads."""
    tokens, blocks = close_up.tokens, close_up.attention
    most_heads = max(map(len, blocks), default=0)
    if not most_heads:
        return None
    columns = most_heads * max(1, 4 // most_heads)
    side = len(tokens) + 2
    named_heads = [
        (f"{block}.{head}", f"block {block}, head {head}", weights)
        for block, of_block in enumerate(blocks)
        for head, weights in enumerate(of_block)
    ]
    pixels, titles = [], []
    for number, (short_name, name, weights) in enumerate(named_heads):
        row, column = divmod(number, columns)
        left, top = column * side, row * (side + TITLE) + TITLE
        titles.append({"title": short_name, "left": left, "top": top})
        for place, of_token in enumerate(weights):
            shares = _thousandths(of_token[: place + 1])
            pixels.append({"h": name, "x": left, "y": top + place, "at": place, "w": shares})
    rows = -(-len(named_heads) // columns)
    sides = (float(columns * side - 2), float(rows * (side + TITLE)))
    squares = (
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
            color=_shade_of("share"),
            tooltip=[alt.Tooltip("h:N", title="head"), *ATTENTION_TOOLTIP],
        )
    )
    words = alt.Chart(alt.InlineData(values=titles)).mark_text(
        align="left", baseline="bottom", dy=-2, style="reference-word"
    )
    words = words.encode(x="left:Q", y="top:Q", text="title:N")
    chart = alt.layer(squares.add_params(_zoom()), words)
    chart = chart.add_params(alt.param(name="tokens", value=list(tokens)))
    marks = len(named_heads) * len(tokens) ** 2 // 2
    description = "where each head of each block attends to"
    return _finished(chart.properties(height="container"), description, marks=marks), sides


def attention(close_up: CloseUp) -> Spec:
    """One head at a time, large: from each token (rows) to those before it (columns)."""
    tokens = close_up.tokens
    rows, names = [], []
    for block, of_block in enumerate(close_up.attention):
        for head, weights in enumerate(of_block):
            names.append(f"block {block}, head {head}")
            for place, of_token in enumerate(weights):
                shares = _thousandths(of_token[: place + 1])
                rows.append({"head": names[-1], "at": place, "w": shares})
    select = alt.binding_select(options=names, name="head ")
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
            x=alt.X("sees:O", title="to", axis=_tokens(tokens)),
            y=alt.Y("at:O", title="from", axis=_tokens(tokens, across=False)),
            color=_shade_of("share"),
            tooltip=ATTENTION_TOOLTIP,
        )
        .add_params(
            alt.param(name="head", value=names[-1], bind=select),
            alt.param(name="tokens", value=list(tokens)),
        )
    )
    chart = chart.properties(height=15 * len(tokens))
    return _finished(chart, "where one head attends to", marks=len(tokens) ** 2)


def _thousandths(weights: Sequence[float]) -> list[int]:
    return [0 if math.isnan(weight) else round(1000 * weight) for weight in weights]


def _shade_of(share: str) -> alt.Color:
    """The colour of a cell by a share, 0 to 1."""
    scale = alt.Scale(domain=[0, 1], range="heatmap")
    return alt.Color(f"{share}:Q", scale=scale, legend=None)


def _readable(shade: str) -> alt.Color:
    """The colour of text on such a cell: the one of the page's two that can be read there."""
    scale = alt.Scale(type="threshold", domain=[0.55], range="ordinal")
    return alt.Color(f"{shade}:Q", scale=scale, legend=None)


def _bare_axis() -> alt.Axis:
    """An axis of names, whole however long they are."""
    return alt.Axis(labelLimit=0, ticks=False, domain=False)


def _tokens(tokens: Sequence[str], across: bool = True) -> alt.Axis:
    """An axis of places in the text, each with its token, upright where that needs less room."""
    are_long = max(map(len, tokens[1:]), default=1) > 1
    return alt.Axis(
        labelExpr="tokens[datum.value]",
        labelAngle=-90 if across and are_long else 0,
        labelOverlap=False,
        ticks=False,
        domain=False,
        labelLimit=0,
    )
