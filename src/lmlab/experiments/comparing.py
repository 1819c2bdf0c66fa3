"""`lmlab compare`: finished runs as variants, each judged against a baseline; as a table, in words, as JSON, as CSV."""

import csv
import io
import json
import math
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from lmlab import params
from lmlab.errors import UserError
from lmlab.experiments import runs as library
from lmlab.experiments import variants as grouping
from lmlab.experiments import verdicts as judging
from lmlab.experiments.run import SEEDS, Run
from lmlab.experiments.variants import Variant
from lmlab.experiments.verdicts import Verdict

MEASURES = ("validation.bits_per_byte", "test.bits_per_byte", "validation.accuracy", "validation.calibration_error")
"""What is compared unless something else is asked for. Few: the more is compared, the more seeds a difference takes."""
PER_TOKEN = re.compile(r"(.+[._])?nats(_per_token)?|(validation|test)\.(perplexity|accuracy|calibration_error)")
"""Measures that compare only where a token is the same."""
FACTS = re.compile(
    r"(.+\.)?(references\..+|window|stride|parameters|tokens_seen|training_bits|vocabulary|bytes_per_token|steps|operations"
    r"|tokens|bytes|pairs(\..+)?|characters|train_characters|period|by_length_alone)"
)
"""Measures that say what a run is, or what was measured, rather than how well it went."""
WIDE = 132


@dataclass(frozen=True)
class Comparison:
    """All variants against one baseline."""

    baseline: Variant
    others: list[Variant]
    verdicts: list[Verdict]
    unfair: dict[str, list[str]]
    """For each variant's name, what it does not have in common with the baseline besides what is compared."""
    notes: list[str]
    alpha: float


def compare(names: Sequence[str], baseline: str, measures: Sequence[str], alpha: float, root: Path = Path()) -> Comparison:
    """Read the runs, find which are of one variant, and judge each variant against the baseline's.

    The baseline is the variant of the run that `baseline` names, with all its seeds; else HEAD's own where no names were
    given, else that of the first run named. Raises UserError where there is nothing to compare.
    """
    named, notes = library.gather(list(names), root)
    ours = library.read([baseline], root) if baseline else _own_row(list(names), named, root)
    first, pool = ours[0], _each_once([*ours, *named, *library.siblings(ours[0].name, root, named)])
    same = next(variant.runs for variant in grouping.group(pool)[0] if _holds(variant, first))
    kept = _each_once([*same, *ours, *named])
    if any(measure == "all" or measure.startswith("timing.") for measure in measures):
        kept = [library.timed(run) for run in kept]
    variants, more = grouping.group(kept)
    mine = next(variant for variant in variants if _holds(variant, first))
    others = [variant for variant in variants if variant is not mine]
    if not others:
        raise UserError(
            f"there is one variant only, {mine.name} ({len(mine.runs)} runs that differ in nothing but seeds);"
            " run another, such as `dvc exp run -S train.optimizer=lion`, or name one"
        )
    wanted = _measures(measures, kept)
    left_out = {
        (variant.name, measure)
        for variant in others
        for measure in wanted
        if PER_TOKEN.fullmatch(measure) and not grouping.same_tokenizer(mine, variant)
    }
    unfair = {variant.name: list(grouping.unfair(mine, variant)) for variant in others}
    for variant in others:
        if dropped := [measure for name, measure in left_out if name == variant.name]:
            unfair[variant.name].append(
                f"another tokenizer: costs for each token do not compare ({', '.join(sorted(dropped))})"
            )
    found = judging.judge_all(mine.runs, {one.name: one.runs for one in others}, wanted, alpha, mine.name, left_out)
    return Comparison(mine, others, found, unfair, [*notes, *more], alpha)


def _holds(variant: Variant, run: Run) -> bool:
    return any(one.name == run.name for one in variant.runs)


def _each_once(runs: Sequence[Run]) -> list[Run]:
    once: dict[str, Run] = {}
    for run in runs:
        once.setdefault(run.name, run)
    return list(once.values())


def _own_row(names: list[str], named: list[Run], root: Path) -> list[Run]:
    """The baseline where none was asked for: the first run there is, or what it began from where that tells nothing."""
    variants = grouping.group(named)[0]
    if len(variants) > 1 or not names:
        return named[:1]
    row = library.siblings(named[0].name, root)
    return row[:1] or named[:1]


def _measures(wanted: Sequence[str], runs: Sequence[Run]) -> list[str]:
    there = list(dict.fromkeys(key for run in runs for key in run.measures))
    if "all" in wanted:
        return [key for key in there if not FACTS.fullmatch(key)]
    for measure in wanted:
        if measure not in there:
            raise UserError(f"no run has the measure {measure!r}; {params.nearest(measure, [*there, 'all'])}")
    return list(wanted) or [key for key in MEASURES if key in there]


# ---------------------------------------------------------------------------------------------------------- for people


def show(found: Comparison, console: Console | None = None) -> None:
    """Print it: the baseline, then for every variant what differs, what is unfair, a table and the verdicts in words."""
    console = console or Console(highlight=False)
    if not console.is_terminal:
        console = Console(highlight=False, width=max(console.width, WIDE), file=console.file)
    console.print(f"Baseline: {_who(found.baseline)}", markup=False)
    for variant in found.others:
        console.print(f"\nAgainst it: {_who(variant)}", markup=False, style="bold")
        for line in [*_differs(found.baseline, variant), *(f"unfair: {line}" for line in found.unfair[variant.name])]:
            console.print(f"  {line}", markup=False)
        verdicts = [verdict for verdict in found.verdicts if verdict.variant == variant.name]
        if verdicts:
            console.print(_table(verdicts))
        else:
            console.print("  the two have no measure in common")
        for verdict in verdicts:
            console.print(f"  {verdict.measure}: {verdict.sentence}", markup=False, style="bold")
    console.print()
    for line in [*_explained(found), *found.notes]:
        console.print(f"Note: {line}", markup=False)


def _who(variant: Variant) -> str:
    names = [run.name for run in variant.runs]
    few = ", ".join(names[:4]) + (f" and {len(names) - 4} more" if len(names) > 4 else "")
    return variant.name if names == [variant.name] else f"{variant.name} ({len(names)} run{'s' * (len(names) > 1)}: {few})"


def _differs(baseline: Variant, variant: Variant) -> list[str]:
    keys = grouping.differing([baseline.params, variant.params])
    return [f"{key}: {baseline.params[key]} -> {variant.params[key]}" for key in keys]


def _table(verdicts: Sequence[Verdict]) -> Table:
    table = Table(box=None, padding=(0, 1, 0, 2))
    table.add_column("measure", no_wrap=True)
    for title in ("pairs", "baseline", "variant", "difference", "interval", "p", "corrected", "effect"):
        table.add_column(title, justify="right", no_wrap=True)
    for one in verdicts:
        interval = "" if math.isnan(one.low) else f"{one.low:+.3g} to {one.high:+.3g}"
        table.add_row(
            one.measure, str(one.pairs), _number(one.baseline_mean), _number(one.variant_mean), _number(one.difference, "+"),
            interval, f"{one.p:.3g}", f"{one.corrected:.3g}", _number(one.effect, "+", 3),
        )  # fmt: skip
    return table


def _number(value: float, sign: str = "", digits: int = 4) -> str:
    return "" if math.isnan(value) else f"{value:{sign}.{digits}g}"


def _explained(found: Comparison) -> list[str]:
    count = max((verdict.compared for verdict in found.verdicts), default=1)
    seeds = " and ".join(SEEDS)
    lines = [
        f"paired by {seeds}; intervals of at least {100 * (1 - found.alpha):g} % and p by flipping signs of differences"
    ]
    if count > 1:
        lines[0] += f", corrected for {count} comparisons (Holm)"
    if any(verdict.words == "too few seeds" for verdict in found.verdicts):
        lines.append(
            f"one measure of one variant takes at least {judging.least(found.alpha)} pairs to show anything at"
            f" {found.alpha:g}, more measures at once take more; --measure names those that matter to you"
        )
    return lines


# -------------------------------------------------------------------------------------------------------- for machines


def as_json(found: Comparison) -> str:
    """The whole comparison; what is no finite number becomes null."""
    variants = [
        {
            "name": variant.name,
            "runs": [run.name for run in variant.runs],
            "differs": {
                key: [found.baseline.params[key], variant.params[key]]
                for key in grouping.differing([found.baseline.params, variant.params])
            },
            "unfair": found.unfair[variant.name],
            "verdicts": [_plain(verdict) for verdict in found.verdicts if verdict.variant == variant.name],
        }
        for variant in found.others
    ]
    baseline = {"name": found.baseline.name, "runs": [run.name for run in found.baseline.runs]}
    whole = {"alpha": found.alpha, "baseline": baseline, "variants": variants, "notes": found.notes}
    return json.dumps(whole, indent=2, ensure_ascii=False, allow_nan=False)


def _plain(verdict: Verdict) -> dict[str, Any]:
    values = asdict(verdict) | {"sentence": verdict.sentence}
    return {key: None if isinstance(value, float) and not math.isfinite(value) else value for key, value in values.items()}


def as_csv(found: Comparison) -> str:
    """A row for each verdict; what is no finite number is empty, and `unfair` holds what is, with semicolons between."""
    rows = [
        {**_plain(verdict), "alpha": found.alpha, "unfair": "; ".join(found.unfair[verdict.variant])}
        for verdict in found.verdicts
    ]
    text = io.StringIO()
    writer = csv.DictWriter(text, list(rows[0]) if rows else ["measure"], lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()
