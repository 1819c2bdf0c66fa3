"""A comparison as text for people, and as JSON or CSV for machines."""

import csv
import io
import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from typing import Any

from rich.console import Console
from rich.table import Table

from lmlab.core.errors import printable
from lmlab.experiments.compare import caveats, variants
from lmlab.experiments.compare.comparing import Comparison
from lmlab.experiments.compare.left_out import MOST_NAMED
from lmlab.experiments.compare.variants import Variant
from lmlab.experiments.compare.verdict import Role, Verdict
from lmlab.experiments.wording import few, quantity

WIDE = 132

# --------------------------------------------------------------------------------------------------
# for people


def show(comparison: Comparison, console: Console | None = None) -> None:
    """Print it: for every variant the verdicts in words, what they rest on and a table; caveats
    last.
    """
    console = console or Console(highlight=False)
    if not console.is_terminal:
        console = Console(highlight=False, width=max(console.width, WIDE), file=console.file)

    def say(line: str, style: str = "") -> None:
        """On one line, whatever params and names hold."""
        console.print(printable(line), markup=False, style=style)

    say(f"Baseline: {_described(comparison.baseline)}")
    for variant in comparison.others:
        console.print()
        say(f"Against it: {_described(variant)}", "bold")
        verdicts = _verdicts_of(comparison, variant)
        judged = [verdict for verdict in verdicts if verdict.judged]
        for verdict in judged:
            role = f" [{verdict.role}]" if verdict.role == Role.SECONDARY else ""
            say(f"  {verdict.measure}: {verdict.sentence}{role}", "bold")
        for line in _without_verdict(verdicts):
            say(f"  {line}", "bold")
        if not verdicts:
            say("  the two have no measure in common")
        for line in _beside(comparison, variant):
            say(f"  {line}")
        if judged:
            console.print(_table(judged))
    console.print()
    for line in [*caveats.lines(comparison), *comparison.notes]:
        say(f"Note: {line}")


def _verdicts_of(comparison: Comparison, variant: Variant) -> list[Verdict]:
    return [verdict for verdict in comparison.verdicts if verdict.variant == variant.name]


def _described(variant: Variant) -> str:
    """A variant's name and its runs."""
    names = [run.name for run in variant.runs]
    diverged = len(_diverged(variant))
    if names == [variant.name] and not diverged:
        return variant.name
    ended = f", {diverged} diverged" if diverged else ""
    return f"{variant.name} ({quantity(len(names), 'run')}{ended}: {few(names, MOST_NAMED)})"


def _without_verdict(verdicts: Sequence[Verdict]) -> list[str]:
    """The measures that are not judged, a line for each reason."""
    by_sentence: dict[str, list[str]] = {}
    for verdict in verdicts:
        if not verdict.judged:
            by_sentence.setdefault(verdict.sentence, []).append(verdict.measure)
    return [f"{', '.join(measures)}: {sentence}" for sentence, measures in by_sentence.items()]


def _beside(comparison: Comparison, variant: Variant) -> Iterator[str]:
    """What stands beside a variant's verdicts: what differs, what is unfair, what was left out, how
    much was tried.
    """
    for key, (ours, theirs) in _differences(comparison.baseline, variant).items():
        yield f"{key}: {ours} -> {theirs}"
    yield from (f"unfair: {line}" for line in comparison.unfair[variant.name])
    yield from (f"left out: {line}" for line in comparison.left_out.get(variant.name, []))
    tuning = comparison.tuning.get(variant.name)
    if tuning:
        yield f"tuning: {tuning.sentence}"
    sampling = comparison.sampling.get(variant.name)
    if sampling:
        yield f"standard error {sampling.sentence}"


def _differences(baseline: Variant, variant: Variant) -> dict[str, tuple[Any, Any]]:
    """The params in which two differ, with the values of both."""
    keys = variants.differing([baseline.params, variant.params])
    return {key: (baseline.params[key], variant.params[key]) for key in keys}


def _table(verdicts: Sequence[Verdict]) -> Table:
    table = Table(box=None, padding=(0, 1, 0, 2))
    table.add_column("measure", no_wrap=True)
    of_numbers = (
        "pairs",
        "baseline",
        "variant",
        "difference",
        "interval",
        "p",
        "corrected",
        "effect",
    )
    for title in of_numbers:
        table.add_column(title, justify="right", no_wrap=True)
    for verdict in verdicts:
        interval = f"{verdict.low:+.3g} to {verdict.high:+.3g}"
        table.add_row(
            verdict.measure,
            str(verdict.pairs),
            _mean(verdict.baseline_mean, verdict.survivors_baseline),
            _mean(verdict.variant_mean, verdict.survivors_variant),
            _number(verdict.difference, "+"),
            "" if math.isnan(verdict.low) else interval,
            f"{verdict.p:.3g}",
            f"{verdict.corrected:.3g}",
            _number(verdict.effect, "+", 3),
        )
    return table


def _mean(mean: float, of_survivors: float) -> str:
    return _number(mean) if math.isnan(of_survivors) else f"{_number(of_survivors)}*"


def _number(value: float, sign: str = "", digits: int = 4) -> str:
    return "" if math.isnan(value) else f"{value:{sign}.{digits}g}"


# --------------------------------------------------------------------------------------------------
# for machines


def as_json(comparison: Comparison) -> str:
    """The whole comparison; NaN and infinite numbers become null."""
    baseline = comparison.baseline
    content = {
        **asdict(comparison.rules),
        "baseline": {
            "name": baseline.name,
            "runs": [run.name for run in baseline.runs],
            "diverged": _diverged(baseline),
        },
        "variants": [_variant_block(comparison, variant) for variant in comparison.others],
        "explained": caveats.lines(comparison),
        "notes": comparison.notes,
    }
    return json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False)


def _variant_block(comparison: Comparison, variant: Variant) -> dict[str, Any]:
    tuning = comparison.tuning.get(variant.name)
    sampling = comparison.sampling.get(variant.name)
    return {
        "name": variant.name,
        "runs": [run.name for run in variant.runs],
        "diverged": _diverged(variant),
        "differs": _differences(comparison.baseline, variant),
        "unfair": comparison.unfair[variant.name],
        "left_out": comparison.left_out.get(variant.name, []),
        "tuning": _finite(asdict(tuning)) if tuning else None,
        "text_standard_error": asdict(sampling) if sampling else None,
        "looked_before": comparison.looked.get(variant.name, 0),
        "verdicts": [_verdict_block(verdict) for verdict in _verdicts_of(comparison, variant)],
    }


def _diverged(variant: Variant) -> dict[str, str]:
    """Where and why those of its runs diverged that did."""
    return {run.name: run.diverged for run in variant.runs if run.diverged}


def _verdict_block(verdict: Verdict) -> dict[str, Any]:
    return _finite(asdict(verdict) | {"sentence": verdict.sentence})


def _finite(values: dict[str, Any]) -> dict[str, Any]:
    """The same with None for NaN and infinite numbers."""
    return {
        key: None if isinstance(value, float) and not math.isfinite(value) else value
        for key, value in values.items()
    }


def as_csv(comparison: Comparison) -> str:
    """A row for each verdict.

    NaN and infinite numbers are empty; lists such as `unfair` have semicolons between.
    """
    rows = [_row(comparison, verdict) for verdict in comparison.verdicts]
    text = io.StringIO()
    writer = csv.DictWriter(text, list(rows[0]) if rows else ["measure"], lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def _row(comparison: Comparison, verdict: Verdict) -> dict[str, Any]:
    name = verdict.variant
    tuning = comparison.tuning.get(name)
    sampling = comparison.sampling.get(name)
    of_tuning = _finite(asdict(tuning)) if tuning else {}
    return {
        **_verdict_block(verdict),
        "alpha": comparison.alpha,
        "anytime": comparison.rules.anytime,
        "unfair": "; ".join(comparison.unfair[name]),
        "left_out_runs": "; ".join(comparison.left_out.get(name, [])),
        "looked_before": comparison.looked.get(name, 0),
        "tried_baseline": of_tuning.get("baseline"),
        "tried_variant": of_tuning.get("variant"),
        "best_baseline": of_tuning.get("best_baseline"),
        "best_variant": of_tuning.get("best_variant"),
        "text_error_difference": sampling.difference if sampling else None,
        "text_error_level": sampling.level if sampling else None,
    }
