"""Sections on the course of training: loss, learning rate, gradient norm, samples by step."""

import math
from collections.abc import Iterator, Sequence

import numpy as np
import pandas as pd

from lmlab.experiments.compare.run import Run
from lmlab.experiments.report import charts
from lmlab.experiments.report.elements import (
    Chart,
    Element,
    Note,
    Pair,
    Sample,
    Samples,
    Section,
)
from lmlab.experiments.report.shown import KNESER_NEY, Shown, read_json, read_rows, thinned

SPLITS = {"validation": "validation_nats", "training": "train_nats"}
BESIDE_THE_LOSS = {
    "learning_rate": "learning rate",
    "gradient_norm": "gradient norm before clipping",
}
MOST_SAMPLES = 6
"""Samples that are shown of a run's training."""


def loss_section(shown: Shown) -> Section | None:
    """Validation and training loss along training, with learning rate and gradient norm."""
    content: list[Element] = []
    factors = [_bits_per_nat(run) for _, run in shown.runs()]
    in_bits = None not in factors
    tables = list(_loss_tables(shown, in_bits))
    table = pd.concat(tables, ignore_index=True) if tables else pd.DataFrame({"loss": []})
    table = table[np.isfinite(table["loss"])]
    unit = "bits per byte" if in_bits else "nats per token"
    if len(table):
        levels = {run.measures.get(KNESER_NEY) for _, run in shown.runs()}
        level = levels.pop() if len(levels) == 1 and in_bits else None
        content.append(Chart(charts.curves(table, shown.names, unit, level)))
    small = list(_small_charts(shown))
    if small:
        content.append(Pair(small))
    content += _starts(shown)
    if not content:
        return None
    return Section("Loss", _loss_intro(shown, in_bits) if len(table) else "", content)


def _starts(shown: Shown) -> Iterator[Note]:
    """What each variant's first run went on from, where that is another run."""
    for _, run in shown.first_runs():
        if not run.start:
            continue
        spent = {key: run.measures.get(f"start.{key}", math.nan) for key in ("tokens", "bytes")}
        line = (
            f"{run.name} goes on from a run of {run.start} (text, steps, hash of its params), which"
            f" had read {spent['tokens']:,.0f} tokens and {spent['bytes']:,.0f} bytes; curves begin"
            " there."
        )
        before = run.measures.get("start.bits_per_byte_before")
        at_once = run.measures.get("start.bits_per_byte_at_once")
        if before is not None and at_once is not None:
            line += (
                f" In windows that do not overlap, that run ended with {before:.4f} bits per byte"
                f" on its own validation text; this one had {at_once:.4f} before its first step."
            )
        yield Note(line)


def _loss_intro(shown: Shown, in_bits: bool) -> str:
    converted = " converted with the validation text's bytes per token" if in_bits else ""
    intro = (
        "Points: the validation split, in windows that do not overlap, so the curve ends a little"
        f" above the final score. Thin line: training{converted or ' in nats per token'}."
    )
    if len(shown.texts) > 1:
        intro += " Curves over different texts do not compare."
    return intro


def _loss_tables(shown: Shown, in_bits: bool) -> Iterator[pd.DataFrame]:
    for number, run in shown.runs():
        factor = (_bits_per_nat(run) if in_bits else None) or 1.0
        seconds_by_step = _seconds_by_step(run)
        for split, column in SPLITS.items():
            curve = run.curves.get(split)
            if curve is None or column not in curve or not len(curve):
                continue
            table = thinned(curve)
            loss = table[column] * factor
            table = table.assign(variant=number, run=run.name, split=split, loss=loss)
            if seconds_by_step and "step" in table:
                table["seconds"] = table["step"].map(seconds_by_step)
            columns = ["variant", "run", "split", "loss", *charts.AMOUNTS]
            yield table[[key for key in columns if key in table]]


def _seconds_by_step(run: Run) -> dict[int, float]:
    timing = read_json(run, "data/timing/train.json") or {}
    columns = timing.get("seconds_at")
    return dict(zip(columns["step"], columns["seconds"], strict=True)) if columns else {}


def _small_charts(shown: Shown) -> Iterator[Chart]:
    for column, title in BESIDE_THE_LOSS.items():
        table = shown.joined("training", column, "step")
        if table is not None:
            kept = table[["variant", "run", "step", column]]
            axes = ("step", "")
            spec = charts.along(kept, shown.names, "step", column, axes, title, height=180)
            yield Chart(spec, title.capitalize())


def _bits_per_nat(run: Run) -> float | None:
    """What turns nats per token into bits per byte on the validation text of this run.

    Of a run that diverged it is taken from its last validation.
    """
    bits = run.measures.get("validation.bits_per_byte")
    nats = run.measures.get("validation.nats_per_token")
    curve = run.curves.get("validation")
    columns = {"validation_bits_per_byte", "validation_nats"}
    if nats is None and curve is not None and len(curve) and columns <= {*curve}:
        last = curve.iloc[-1]
        bits, nats = float(last["validation_bits_per_byte"]), float(last["validation_nats"])
    return bits / nats if bits and nats and math.isfinite(bits / nats) else None


def training_samples_section(shown: Shown) -> Section | None:
    """What each variant's first run wrote while it was trained, by step."""
    panels: dict[int, list[Element]] = {}
    for number, (_, run) in enumerate(shown.first_runs()):
        samples = _samples_by_step(run)
        if samples:
            panels[number] = [Samples(samples)]
    if not panels:
        return None
    intro = "Generated without a prompt, always with the same seed."
    return Section("Samples during training", intro, [shown.choice(panels)])


def _samples_by_step(run: Run) -> list[Sample]:
    rows = [row for row in read_rows(run, "data/training/log.jsonl") if "sample" in row]
    return [
        Sample(f"step {row['step']:,}", str(row["sample"]).strip("\n"))
        for row in _evenly(rows, MOST_SAMPLES)
    ]


def _evenly(rows: Sequence[dict[str, object]], most: int) -> list[dict[str, object]]:
    """At most so many, the first and the last among them."""
    if len(rows) <= most:
        return list(rows)
    places = np.linspace(0, len(rows) - 1, most).round().astype(int)
    return [rows[place] for place in places]
