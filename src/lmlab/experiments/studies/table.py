"""The table of a study: every arm at its best with an interval over seeds and a verdict against the
baseline, its cost beside the baseline's, and charts.
"""

import math
from collections.abc import Collection, Iterator
from typing import Any

import altair
import pandas as pd
import vl_convert
from scipy import stats

from lmlab.core.errors import UserError
from lmlab.core.files import whole_file
from lmlab.core.params import Values
from lmlab.experiments.compare.run import Run
from lmlab.experiments.compare.verdicts import judge_all
from lmlab.experiments.studies import levels, records
from lmlab.experiments.studies.basin import Basin, basin
from lmlab.experiments.studies.making import disagreements
from lmlab.experiments.studies.records import ArmRecord, Result
from lmlab.experiments.studies.study import Study

CONFIDENCE = 0.95
TOLERANCE = 0.05
"""Bits per byte above the best of a sweep that still count as in its basin."""
BITS = "validation_bits_per_byte"
"""A column of results.csv."""
MEASURE = "validation.bits_per_byte"
"""What verdicts are about."""
TO_LEVEL = {
    "bytes_to_level": "learning_curve.bytes_to.level",
    "flops_to_level": "learning_curve.flops_to.level",
}
"""Columns of results.csv, and the measures that they are."""
VERDICT = ["verdict", "difference", "difference_low", "difference_high"]
"""Columns of summary.csv."""
Arms = dict[str, ArmRecord]
"""What stands in the files of points, by arm."""


def write(study: Study, also: Collection[str] = ()) -> pd.DataFrame:
    """Write results.csv, summary.csv and charts of the arms that have points; return the summary.

    `also` are arms that are not listed in the study's params.yaml: other values of its key `each`.
    Raises UserError where there are none, or where arms differ in more than they should.
    """
    arms = read_arms(study, also)
    check_alike(study, arms)
    results = rows(arms, study.params.within)
    table = summary(results, study.params.reference)
    folder = study.output
    with whole_file(folder / "results.csv") as partial:
        results.to_csv(partial, index=False, lineterminator="\n")
    with whole_file(folder / "summary.csv") as partial:
        table.to_csv(partial, index=False, lineterminator="\n", float_format="%.6g")
    words = [*VERDICT, *(f"{key}_verdict" for key in TO_LEVEL)]
    order, numbers = table["arm"].tolist(), table.drop(columns=words, errors="ignore")
    (folder / "charts").mkdir(exist_ok=True)
    for name, chart in charts(numbers, curves(arms), readings(arms), order):
        with whole_file(folder / "charts" / f"{name}.svg") as partial:
            partial.write_text(vl_convert.vegalite_to_svg(chart.to_json()), encoding="utf-8")
    return table


def read_arms(study: Study, also: Collection[str] = ()) -> Arms:
    """The points of the study's arms that have been run. A file of what is no arm any more is left
    out, which is said.
    """
    files = sorted((study.output / "points").glob("*.json"))
    arms = {}
    for file in files:
        if file.stem in (*study.arms, *also):
            arms[file.stem] = records.read(file)
        else:
            print(f"{study.name}: {file} is left out: the study has no such arm", flush=True)
    if not arms:
        raise UserError(
            f"{study.output} has no points; run `lmlab study {study.name}` to make them"
        )
    return arms


def check_alike(study: Study, arms: Arms) -> None:
    """Raise UserError where arms differ in more than their own changes and sweeps."""
    made = {name: record.made for name, record in arms.items() if record.made is not None}
    silent = [name for name in arms if name not in made]
    if silent:
        raise UserError(
            f"{study.folder}: the points of {', '.join(silent[:3])} do not say what they were made"
            f" with, so no table can be made of them; run `lmlab study {study.name}`"
        )
    own_keys = set().union(*(study.arm(name).own_keys for name in arms))
    first, *others = arms
    for name in others:
        if differing := disagreements(made[first], made[name], own_keys):
            raise UserError(
                f"{study.folder}: {first} and {name} were not made alike ({differing[0]}), so they"
                f" go into no table together; run `lmlab study {study.name}`, or delete the"
                " points that are not to be kept"
            )


def rows(arms: Arms, within: float = 0) -> pd.DataFrame:
    """All runs, a row each: the arm, its swept values, the seed, and what was measured.

    `reported` marks the runs with the reported seeds at the best of the swept values. With `within`
    there is also what they had spent when they were back at the level of the run that some went on
    from with the same seed (`levels`); infinite where they never were.
    """
    level = levels.by_seed(arms, within) if within else {}
    table = pd.DataFrame(
        {
            "arm": name,
            **point.at,
            "reported": point.reported,
            "at_best": point.at == record.best,
            **_validation(point.result),
            "seed": point.seed,
            **_plain(point.result),
            **(_to_level(point.result, level[point.seed]) if point.seed in level else {}),
        }
        for name, record in arms.items()
        for point in record.points
    )
    if BITS not in table:  # every run diverged
        table[BITS] = math.nan
    return table


def _to_level(result: Result, level: float) -> Values:
    spent = levels.Spent(math.inf, math.inf)
    if not result.diverged:
        spent = levels.spent_to(result, level)
    return {"level": level, "bytes_to_level": spent.bytes, "flops_to_level": spent.flops}


def _validation(result: Result) -> Values:
    values = result.validation.model_dump() if result.validation else {}
    return {f"validation_{key}": value for key, value in values.items()}


def _plain(result: Result) -> Values:
    """What a result holds that is no block and no curve."""
    values = result.values()
    return {key: value for key, value in values.items() if not isinstance(value, dict | list)}


def reported(results: pd.DataFrame) -> pd.DataFrame:
    """The rows that a table is made of: those reported; of an arm that has none, those of its
    sweep at the best value.
    """
    has_reported = results.groupby("arm")["reported"].transform("any")
    return results[results["reported"] | (results["at_best"] & ~has_reported)]


def summary(results: pd.DataFrame, reference: str) -> pd.DataFrame:
    """A row for each arm, the best first: what its reported runs measured, over seeds.

    `low` and `high` bound the mean of bits per byte with 95 % confidence by Student's distribution,
    which takes the seeds' results as normal; with a single seed there is no interval. Where runs
    diverged there is no mean either: `diverged` says how many did. `verdict` is that of `lmlab
    compare` against the reference, paired by seed and corrected for the number of arms, with the
    mean difference and its interval beside it. Seconds and bytes are medians, and relative to the
    reference. `basin_octaves`, for an arm that swept one number, is how wide the values are that do
    nearly as well as the best, and `basin_is_least` says that the sweep ends within them.

    Where it was asked when runs are back at a level, `bytes_to_level` and `flops_to_level` are
    medians, with a verdict on either, corrected for the number of arms; runs that never were there
    are tied last.
    """
    table = pd.DataFrame(
        _row(str(arm), runs, results[results["arm"] == arm])
        for arm, runs in reported(results).groupby("arm")
    ).sort_values("bits_per_byte", ignore_index=True)
    table = table.merge(_verdicts(reported(results), reference), on="arm", how="left")
    for key, measure in TO_LEVEL.items():
        if key in results:
            verdicts = _verdicts(reported(results), reference, measure)[["arm", "verdict"]]
            named = verdicts.rename(columns={"verdict": f"{key}_verdict"})
            table = table.merge(named, on="arm", how="left")
    at = table["arm"] == reference
    for key, name in (("step_seconds", "relative_seconds"), ("step_bytes", "relative_bytes")):
        if key in table and at.any():
            table[name] = table[key] / table.loc[at, key].iloc[0]
    return table


def _row(arm: str, runs: pd.DataFrame, with_sweep: pd.DataFrame) -> Values:
    """An arm's row, without the verdict."""
    mean, half = _mean_and_half(runs[BITS])
    row: Values = {
        "arm": arm,
        "seeds": len(runs),
        "bits_per_byte": mean,
        "low": mean - half,
        "high": mean + half,
    }
    if diverged := int(runs[BITS].isna().sum()):
        row["diverged"] = diverged
    swept = [key for key in map(str, runs.columns) if "." in key and runs[key].notna().all()]
    row |= {key: runs[key].iloc[0] for key in swept}
    medians = (
        *("tokens", "training_seconds", "step_seconds", "step_bytes"),
        *("bytes_to_level", "flops_to_level"),
    )
    row |= {key: runs[key].median() for key in medians if key in runs}
    if basin_found := sweep_basin(with_sweep[~with_sweep["reported"]]):
        row |= {
            "basin_octaves": basin_found.octaves,
            "basin_is_least": basin_found.lower_bound,
        }
    return row


def _verdicts(runs: pd.DataFrame, reference: str, measure: str = MEASURE) -> pd.DataFrame:
    """For each arm but the reference, what its runs show against it; empty without a reference."""
    columns = ["arm", *VERDICT]
    by_arm = {str(arm): _as_runs(of_arm) for arm, of_arm in runs.groupby("arm")}
    baseline = by_arm.pop(reference, [])
    if not baseline or not by_arm:
        return pd.DataFrame(columns=columns).astype({"arm": str})
    verdicts = judge_all(baseline, by_arm, [measure], name=reference)
    return pd.DataFrame(
        [
            [verdict.variant, verdict.words, verdict.difference, verdict.low, verdict.high]
            for verdict in verdicts
        ],
        columns=columns,
    )


def _as_runs(rows_of_arm: pd.DataFrame) -> list[Run]:
    """An arm's rows as runs that can be compared."""
    runs = []
    for row in rows_of_arm.to_dict("records"):
        params = {"train.seed": row["seed"], "train.data_seed": row["seed"]}
        diverged = str(row["diverged"]) if isinstance(row.get("diverged"), str) else ""
        measures = {} if diverged else {MEASURE: row[BITS], **_levels_of(pd.Series(row))}
        runs.append(Run(f"{row['arm']}, seed {row['seed']}", params, measures, diverged=diverged))
    return runs


def _levels_of(row: pd.Series) -> Values:
    """What the run of a row spent to a level, as measures; one that never was there has a bound."""
    measures: Values = {}
    for key, measure in TO_LEVEL.items():
        if key in row:
            reached = math.isfinite(row[key])
            bound = measure.replace("_to.", "_to_more_than.")
            measures |= {measure: row[key]} if reached else {bound: 0.0}
    return measures


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
    losses = runs.pivot(index=keys[0], columns="seed", values=BITS)
    ran = runs.assign(ran=1).pivot(index=keys[0], columns="seed", values="ran").notna().all()
    means = losses.loc[:, ran].mean(
        axis=1, skipna=False
    )  # a run that diverged has no loss, and so its value has none
    if not means.notna().any():
        return None
    return basin(means.index.tolist(), means.tolist(), TOLERANCE)


def _reported_results(arms: Arms) -> Iterator[tuple[str, Result]]:
    """The results that a table is made of, but those of runs that diverged; with their arms."""
    for name, record in arms.items():
        for point in record.reported:
            if not point.result.diverged:
                yield name, point.result


def curves(arms: Arms) -> pd.DataFrame:
    """Training loss along the runs at each arm's best, averaged over seeds: arm, tokens, seconds,
    nats.
    """
    rows = []
    for name, result in _reported_results(arms):
        for step, nats in result.training:
            share = step / result.steps
            seconds, tokens = share * result.training_seconds, share * result.tokens
            rows.append({"arm": name, "tokens": tokens, "seconds": seconds, "nats": nats})
    if not rows:
        return pd.DataFrame(columns=["arm", "tokens", "seconds", "nats"])
    return pd.DataFrame(rows).groupby(["arm", "tokens"], as_index=False).mean()


def readings(arms: Arms) -> pd.DataFrame:
    """Angles to backprop's gradient in the runs at each arm's best, averaged over seeds: arm,
    tokens, cosine.
    """
    rows = [
        {"arm": name, "tokens": tokens, "cosine": cosine}
        for name, result in _reported_results(arms)
        for tokens, cosine in result.angle
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
