"""Sections on what happens inside the model: what the probes read, and one text seen at work."""

import io
from collections.abc import Iterator

import numpy as np
import pandas as pd

from lmlab.experiments.report import charts
from lmlab.experiments.report.elements import Chart, Element, Heading, Note, Pair, Section
from lmlab.experiments.report.numbers import as_text, words
from lmlab.experiments.report.shown import Shown, read_json

PROBES = "data/probes"
WHOLE_MODEL = "all"
"""Where a reading of the whole model is from."""
LEAST_WIDTH = 704
"""Of heat maps, in pixels."""
LETTER = 7
"""Width of a letter in a cell of the logit lens, in pixels."""
ROUNDING = 1e-4
"""Relative span below which readings differ by rounding alone."""


def probes_section(shown: Shown) -> Section | None:
    """For each probe how it is read, heat maps by place and step, and curves of the whole model."""
    table = _readings(shown)
    if table is None:
        return None
    content: list[Element] = []
    about = _about(shown)
    for probe, readings in table.groupby("probe", sort=False):
        content += _panel(str(probe), readings, about.get(str(probe), ""), shown)
    intro = (
        "What the probes measured at each snapshot of training. Rows are places in the model; a"
        " number at the beginning is the block. Shades run from the lowest to the highest value of"
        " the measure, by logarithms where values span two orders of magnitude."
    )
    return Section("Inside the model", intro, content)


def _readings(shown: Shown) -> pd.DataFrame | None:
    """What the probes of each variant's first run read; None where there is nothing."""
    tables = []
    for number, (_, run) in enumerate(shown.first_runs()):
        content = run.open(f"{PROBES}/probes.parquet")
        if content:
            table = pd.read_parquet(io.BytesIO(content))
            tables.append(table.assign(variant=number, run=run.name))
    if not any(map(len, tables)):
        return None
    readings = pd.concat(tables, ignore_index=True)
    readings["what"] = readings["measure"].map(words)
    return readings


def _about(shown: Shown) -> dict[str, str]:
    """How each probe is read, in the words of the first run that says so."""
    about: dict[str, str] = {}
    for _, run in shown.first_runs():
        for probe, text in (read_json(run, f"{PROBES}/about.json") or {}).items():
            if text:
                about.setdefault(probe, text)
    return about


def _panel(probe: str, readings: pd.DataFrame, about: str, shown: Shown) -> Iterator[Element]:
    yield Heading(words(probe).capitalize())
    if about:
        yield Note(about)
    local = readings[readings["where"] != WHOLE_MODEL]
    bounds = local.groupby("what", sort=False)["value"].agg(["min", "max"])
    span = bounds["max"] - bounds["min"]
    constant = bounds[span <= ROUNDING * bounds.abs().max(axis=1)]
    for measure, value in constant["min"].items():
        yield Note(f"{str(measure).capitalize()} is {as_text(value)} everywhere.")
    varying = local[~local["what"].isin(constant.index)]
    if len(varying):
        yield shown.choice(_heat_maps(varying))
    of_whole_model = readings["where"] == WHOLE_MODEL
    is_constant = readings["what"].isin(constant.index)
    curves = list(_curves(readings[of_whole_model & ~is_constant], shown))
    if curves:
        yield Pair(curves)


def _heat_maps(readings: pd.DataFrame) -> dict[int, list[Element]]:
    """The heat maps of each variant: one for all measures that are of the same places."""
    shades = readings.groupby("what")["value"].transform(_shade)
    places = readings["where"].str.removesuffix(".weight").str.removeprefix("blocks.")
    table = readings.assign(shade=shades, where=places)
    maps: dict[int, list[Element]] = {}
    for number, of_variant in table.groupby("variant"):
        columns = of_variant[["what", "where", "step", "value", "shade"]]
        maps[int(str(number))] = [
            Chart(
                charts.heat_map(columns[columns["what"].isin(measures)]),
                ", ".join(measures).capitalize(),
                least_width=LEAST_WIDTH,
            )
            for measures in _of_the_same_places(columns)
        ]
    return maps


def _of_the_same_places(table: pd.DataFrame) -> list[list[str]]:
    """The measures in groups, all of a group taken at the same places of the model."""
    groups: dict[tuple[str, ...], list[str]] = {}
    for measure, rows in table.groupby("what", sort=False):
        groups.setdefault(tuple(dict.fromkeys(rows["where"])), []).append(str(measure))
    return list(groups.values())


def _shade(values: pd.Series) -> pd.Series:
    """Values as 0 to 1, by their logarithms where they span two orders of magnitude."""
    if values.min() > 0 and values.max() > 100 * values.min():
        values = np.log(values)
    return ((values - values.min()) / (values.max() - values.min())).round(3)


def _curves(readings: pd.DataFrame, shown: Shown) -> Iterator[Chart]:
    for measure, table in readings.groupby("what", sort=False):
        title = f"{str(measure).capitalize()}, whole model"
        kept = table[["variant", "run", "step", "value"]]
        axes = ("step", "")
        spec = charts.along(kept, shown.names, "step", "value", axes, title, height=160)
        yield Chart(spec, title)


def close_up_section(shown: Shown) -> Section | None:
    """A text read by the model: the logit lens, and the attention of every head."""
    panels: dict[int, list[Element]] = {}
    for number, (_, run) in enumerate(shown.first_runs()):
        record = read_json(run, f"{PROBES}/close_up.json")
        if record and record.get("lens"):
            close_up = charts.CloseUp(record["tokens"], record["attention"], record["lens"])
            panels[number] = _close_up(close_up)
    if not panels:
        return None
    intro = (
        "The logit lens: which token each block's output would predict if the model ended there,"
        " the last block on top; framed where that token came. Below it the attention of each head."
        " Spaces are ␣, line ends ⏎. Strong colours are near 100%."
    )
    return Section("A text read by the model", intro, [shown.choice(panels)])


def _close_up(close_up: charts.CloseUp) -> list[Element]:
    cell = LETTER * (1 + max(map(len, close_up.tokens[1:]), default=1))
    width = max(LEAST_WIDTH, cell * len(close_up.tokens))
    content: list[Element] = [Chart(charts.lens(close_up), "Likeliest next token", width)]
    heads = charts.heads(close_up)
    if heads is not None:
        spec, sides = heads
        content.append(Chart(spec, "All heads, each named by block and head", sides=sides))
        content.append(Chart(charts.attention(close_up), "One head", LEAST_WIDTH))
    return content
