"""The scaling law of a study: fitted to its arms, compared with published ones, tested on sizes
that were held out.

What is held out is predicted from the other arms alone, into prediction.json: the same before it is
measured and after.
"""

from collections.abc import Iterator
from operator import attrgetter
from typing import Any

import altair
import numpy as np
import pandas as pd
import torch
import vl_convert
from pydantic import Field

from lmlab.core import params, registry
from lmlab.core.errors import UserError
from lmlab.core.files import whole_file, whole_folder, write_json
from lmlab.core.params import Params
from lmlab.experiments.studies import records, scaling
from lmlab.experiments.studies.scaling import KAPLAN, PUBLISHED, Fitted, Law
from lmlab.experiments.studies.study import Study
from lmlab.experiments.studies.table import check_alike
from lmlab.training import step as stepping
from lmlab.training.cost import parameters_by_part
from lmlab.training.step import TrainParams

EMBEDDING = ("embedding", "readout")
"""Parts whose matrices have a row for each token of the vocabulary: what Kaplan et al. leave
out.
"""
EXPONENTS = ("alpha", "beta", "size_exponent")
CURVE_POINTS = 60


class FitParams(Params):
    """A scaling study's params.yaml: the section `fit`."""

    sizes: list[str] = Field(min_length=1)
    """Arms that the law is fitted to."""
    held_out: list[str]
    """Arms that it is to predict."""
    replicates: int = Field(ge=40)
    """Resamples of the bootstrap."""
    seed: int = Field(ge=0)
    flops: list[float] = Field(min_length=1)
    """Budgets for which the best size is told."""


def write(study: Study) -> dict[str, Any]:
    """Write prediction.json and fit/ (fit.json, runs.csv, charts) into the study's folder; return
    what fit.json holds.

    Raises UserError where points are missing or can tell no law.
    """
    folder = study.output
    options = params.section(params.read(study.folder / "params.yaml"), "fit", FitParams)
    if both := set(options.sizes) & set(options.held_out):
        raise UserError(
            f"{study.folder / 'params.yaml'}: fit.held_out names {min(both)}, which fit.sizes names"
            " too"
        )
    wanted = [*options.sizes, *(name for name in options.held_out if study.points(name).exists())]
    check_alike(study, {name: records.read(study.points(name)) for name in wanted})
    runs, diverged = _measured(study, options.sizes)
    vocabulary_size = int(runs["vocabulary_size"].iloc[0])
    fitted = _fitted(study, runs, options)
    predicted = _predicted(study, options, fitted, vocabulary_size)
    write_json(
        folder / "prediction.json",
        {"law": scaling.record(fitted.law), "runs": len(runs), "held_out": predicted},
    )

    measured_later = [name for name in options.held_out if study.points(name).exists()]
    later, diverged_later = (
        _measured(study, measured_later) if measured_later else (runs.iloc[:0], [])
    )
    bare = _fitted(
        study, runs.assign(parameters=runs["non_embedding"]), options
    )  # as Kaplan et al. count sizes
    diverged += diverged_later
    found = {
        **_law_and_intervals(fitted),
        **({"diverged": diverged} if diverged else {}),
        **({"resamples_without_a_term": fitted.lacking} if fitted.lacking else {}),
        "runs": len(runs),
        "cells": len(runs.groupby(["parameters", "tokens"])),
        "replicates": options.replicates,
        "residuals": {
            "median": float(np.median(np.abs(fitted.residuals))),
            "largest": float(np.abs(fitted.residuals).max()),
        },
        "non_embedding": _law_and_intervals(bare),
        "left_out": {
            name: scaling.record(law) for name, law in scaling.left_out(runs, fitted.law).items()
        },
        "frontier": [_best(fitted, runs, budget) for budget in options.flops],
        "flops_over_6ND": {
            arm: float(of["over_6ND"].iloc[0]) for arm, of in runs.groupby("arm", sort=False)
        },
        "held_out": [_beside(row, later) for row in predicted],
    }
    if len(later):
        found["with_held_out"] = scaling.record(scaling.fit(pd.concat([runs, later])))
    table = pd.concat([runs.assign(held_out=False), later.assign(held_out=True)], ignore_index=True)
    table["fitted"] = fitted.law.loss(table["parameters"], table["tokens"])
    with whole_folder(folder / "fit", sums=False) as made:
        write_json(made / "fit.json", found)
        table.to_csv(made / "runs.csv", index=False, lineterminator="\n", float_format="%.7g")
        for name, chart in charts(fitted, table, found):
            with whole_file(made / f"{name}.svg") as partial:
                partial.write_text(vl_convert.vegalite_to_svg(chart.to_json()), encoding="utf-8")
    return found


def _fitted(study: Study, runs: pd.DataFrame, options: FitParams) -> Fitted:
    """The law and its resamples. Raises UserError naming the study where the runs can tell no law,
    or no best size.
    """
    try:
        fitted = scaling.bootstrap(runs, options.replicates, options.seed)
        fitted.check_has_an_optimum()
    except UserError as error:
        raise UserError(f"{study.folder}: {error}") from None
    return fitted


def _measured(study: Study, arms: list[str]) -> tuple[pd.DataFrame, list[str]]:
    """A row for each run of some arms; and the runs that diverged, which have no loss to fit a law
    to.
    """
    rows, diverged = [], []
    for name in arms:
        study.arm(name)
        for point in records.read(study.points(name)).points:
            result = point.result
            if result.validation is None:
                at = ", ".join(f"{key} {value}" for key, value in point.at.items())
                diverged.append(", ".join(filter(None, [name, at, f"seed {point.seed}"])))
                continue
            row = {
                "arm": name,
                "seed": point.seed,
                "nats": result.validation.nats_per_token,
                "vocabulary_size": result.vocabulary_size,
                "parameters": result.parameters,
                "tokens": result.tokens,
                "flops": result.flops,
            }
            rows.append(row)
    if not rows:
        raise UserError(
            f"{study.folder / 'points'}: no run of {', '.join(arms)} came to its end, so there is"
            " nothing to fit"
        )
    table = pd.DataFrame(rows)
    table["over_6ND"] = table["flops"] / (scaling.FLOPS * table["parameters"] * table["tokens"])
    bare = {
        name: next(_budgets(study, name, int(table["vocabulary_size"].iloc[0])))[1] for name in arms
    }
    table.insert(4, "non_embedding", table["arm"].map(bare))
    return table, diverged


def _budgets(study: Study, name: str, vocabulary_size: int) -> Iterator[tuple[int, int, int]]:
    """Parameters, those that are no embedding, and tokens of each of an arm's runs, whether it has
    been run or not.
    """
    for values in study.arm(name).grid:
        tree = params.changed(study.tree(name), values)
        train = params.section(tree, "train", TrainParams)
        choices = registry.choices(tree, "train", train)
        run = stepping.begin(train, choices, vocabulary_size, torch.device("cpu"))
        counts = parameters_by_part(run.model)
        total = sum(counts.values())
        yield (
            total,
            total - sum(counts.get(part, 0) for part in EMBEDDING),
            run.params.steps * run.params.batch * run.params.context,
        )


def _predicted(
    study: Study, options: FitParams, fitted: Fitted, vocabulary_size: int
) -> list[dict[str, Any]]:
    rows = []
    for name in options.held_out:
        for parameters, _, tokens in _budgets(study, name, vocabulary_size):
            nats, low, high = fitted.predict(parameters, tokens, options.seed)
            rows.append(
                {
                    "arm": name,
                    "parameters": parameters,
                    "tokens": tokens,
                    "nats": nats,
                    "low": low,
                    "high": high,
                }
            )
    return rows


def _beside(row: dict[str, Any], later: pd.DataFrame) -> dict[str, Any]:
    """A prediction beside what was measured afterwards, if it was."""
    nats = later.loc[
        (later["arm"] == row["arm"]) & (later["tokens"] == row["tokens"]), "nats"
    ].tolist()
    if not nats:
        return row
    mean = float(np.mean(nats))
    return {
        **row,
        "measured": nats,
        "inside": row["low"] <= mean <= row["high"],
        "off_by": mean / row["nats"] - 1,
    }


def _law_and_intervals(fitted: Fitted) -> dict[str, Any]:
    law = scaling.record(fitted.law)
    intervals = {key: fitted.interval(attrgetter(key)) for key in (*law, "size_exponent")}
    return {"law": law, "size_exponent": fitted.law.size_exponent, "intervals": intervals}


def _each(runs: pd.DataFrame, parameters: float) -> float:
    """Operations for each token and parameter, as counted at the sizes that were run, between them
    by their logs.
    """
    known = runs.groupby("parameters")["over_6ND"].first()
    return float(
        scaling.FLOPS
        * np.interp(np.log(parameters), np.log(known.index.to_numpy(float)), known.to_numpy())
    )


def _best(fitted: Fitted, runs: pd.DataFrame, flops: float) -> dict[str, Any]:
    """The best size and amount of text for a budget, with C = 6 N D and with the FLOPs that were
    counted.
    """
    parameters, tokens = fitted.law.optimum(flops)
    counted, counted_tokens = fitted.law.optimum_counted(flops, lambda n: _each(runs, n))

    def ratio(law: Law) -> float:
        n, d = law.optimum(flops)
        return d / n

    return {
        "flops": flops,
        "parameters": parameters,
        "parameters_interval": fitted.interval(lambda law: law.optimum(flops)[0]),
        "tokens": tokens,
        "tokens_per_parameter": tokens / parameters,
        "tokens_per_parameter_interval": fitted.interval(ratio),
        "nats": float(fitted.law.loss(parameters, tokens)),
        "counted": {
            "parameters": counted,
            "tokens": counted_tokens,
            "tokens_per_parameter": counted_tokens / counted,
        },
    }


def charts(fitted: Fitted, table: pd.DataFrame, found: dict[str, Any]) -> Iterator[tuple[str, Any]]:
    """Vega-Lite charts by file name."""
    yield "loss_by_flops", _by_flops(fitted, table)
    yield "fitted_against_measured", _against(table, found["held_out"])
    yield "exponents", _exponents(found)


def _log(name: str, title: str) -> dict[str, Any]:
    return {
        "shorthand": f"{name}:Q",
        "title": title,
        "scale": altair.Scale(type="log", nice=False, zero=False),
    }


def _by_flops(fitted: Fitted, table: pd.DataFrame) -> Any:
    """Runs and, at each size, what the law says; the frontier is the least loss that any size
    reaches.
    """
    order = table["arm"].unique().tolist()
    curves = []
    for arm, runs in table.groupby("arm", sort=False):
        spread = runs["tokens"].max() / runs["tokens"].min()
        tokens = runs["tokens"].min() * np.geomspace(1 / 2, 4 * spread, CURVE_POINTS)
        size = runs["parameters"].iloc[0]
        flops = scaling.FLOPS * runs["over_6ND"].iloc[0] * size * tokens
        curves.append(
            pd.DataFrame({"arm": arm, "flops": flops, "nats": fitted.law.loss(size, tokens)})
        )
    budgets = np.geomspace(table["flops"].min(), table["flops"].max(), CURVE_POINTS)
    best = [
        fitted.law.loss(*fitted.law.optimum_counted(budget, lambda n: _each(table, n)))
        for budget in budgets
    ]
    x = altair.X(
        **_log("flops", "FLOPs of training, counted"), axis=altair.Axis(format=".0e", tickCount=6)
    )
    y = altair.Y(**_log("nats", "nats per character on validation"))
    colour = altair.Color("arm:N", sort=order, title="size")
    layers = [
        altair.Chart(pd.concat(curves))
        .mark_line(strokeWidth=1, opacity=0.7)
        .encode(x=x, y=y, color=colour),
        altair.Chart(table)
        .mark_point(filled=True, size=40, opacity=1)
        .encode(x=x, y=y, color=colour, shape=altair.Shape("held_out:N", title="held out")),
        altair.Chart(pd.DataFrame({"flops": budgets, "nats": np.array(best, dtype=float)}))
        .mark_line(color="black", strokeDash=[5, 3])
        .encode(x=x, y=y),
    ]
    return altair.layer(*layers).properties(
        width=620, height=440, title="Runs, the law at each size, and its frontier"
    )


def _against(table: pd.DataFrame, held_out: list[dict[str, Any]]) -> Any:
    """Each run beside what the law says of it, with the intervals of what was predicted."""
    x = altair.X(**_log("fitted", "nats per character, by the law"))
    y = altair.Y(**_log("nats", "measured"))
    points = (
        altair.Chart(table)
        .mark_point(filled=True, size=40)
        .encode(
            x=x,
            y=y,
            color=altair.Color("arm:N", sort=table["arm"].unique().tolist(), title="size"),
            shape=altair.Shape("held_out:N", title="held out"),
        )
    )
    ends = [table[["fitted", "nats"]].to_numpy().min(), table[["fitted", "nats"]].to_numpy().max()]
    same = (
        altair.Chart(pd.DataFrame({"fitted": ends, "nats": ends}))
        .mark_line(color="grey", strokeWidth=1)
        .encode(x=x, y=y)
    )
    if not held_out:
        return altair.layer(same, points).properties(width=440, height=440)
    told = pd.DataFrame(
        [{"fitted": row["nats"], "low": row["low"], "high": row["high"]} for row in held_out]
    )
    bars = (
        altair.Chart(told)
        .mark_rule(strokeWidth=2, opacity=0.5)
        .encode(x=x, y=altair.Y(**_log("low", "measured")), y2="high:Q")
    )
    return altair.layer(same, bars, points).properties(width=440, height=440)


def _exponents(found: dict[str, Any]) -> Any:
    """The exponents with intervals, in both counts of the size, beside published ones."""
    rows = []
    for source, at in (
        ("this study", found),
        ("this study, without embeddings", found["non_embedding"]),
    ):
        middles = {**at["law"], "size_exponent": at["size_exponent"]}
        for key in EXPONENTS:
            low, high = at["intervals"][key]
            rows.append(
                {"source": source, "exponent": key, "value": middles[key], "low": low, "high": high}
            )
    for source, law in PUBLISHED.items():
        rows += [
            {"source": source, "exponent": key, "value": getattr(law, key)} for key in EXPONENTS
        ]
    rows += [
        {"source": "Kaplan et al. 2020", "exponent": key, "value": KAPLAN[key]} for key in EXPONENTS
    ]
    data = pd.DataFrame(rows)
    y = altair.Y(
        "source:N",
        sort=data["source"].unique().tolist(),
        title=None,
        axis=altair.Axis(labelLimit=300),
    )
    base = altair.Chart(data)
    rules = base.mark_rule(strokeWidth=2).encode(x=altair.X("low:Q", title=None), x2="high:Q", y=y)
    marks = base.mark_point(filled=True, size=60).encode(x=altair.X("value:Q", title=None), y=y)
    panels = altair.layer(rules, marks, data=data).properties(width=200, height=130)
    return panels.facet(column=altair.Column("exponent:N", sort=list(EXPONENTS), title=None))
