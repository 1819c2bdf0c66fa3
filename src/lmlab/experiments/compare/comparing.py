"""`lmlab compare`: finished runs as variants, each judged against a baseline; as a table, in words,
as JSON, as CSV.
"""

import csv
import io
import json
import math
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from lmlab.core import params
from lmlab.core.errors import UserError, printable
from lmlab.experiments.compare import history as library
from lmlab.experiments.compare import looks as looking
from lmlab.experiments.compare import meaning, sampling, trials
from lmlab.experiments.compare import variants as grouping
from lmlab.experiments.compare import verdicts as judging
from lmlab.experiments.compare.history import Unfinished
from lmlab.experiments.compare.pairing import observe
from lmlab.experiments.compare.run import SEEDS, Run
from lmlab.experiments.compare.variants import Variant
from lmlab.experiments.compare.verdicts import Rules, Verdict
from lmlab.experiments.wording import quantity

MEASURES = ("validation.bits_per_byte", "validation.accuracy", "validation.calibration_error")
"""What is compared unless something else is asked for. The first is primary: it is judged as if it
were the only one.
"""
WIDE = 132
FEW = 4
"""Names that are listed before it is said how many more there are."""


@dataclass(frozen=True)
class Tuning:
    """How much a variant was tuned beside the baseline (`trials`)."""

    baseline: int
    """Configurations of the baseline's parts that were run."""
    variant: int
    together: bool
    """Whether the two have the same parts, so that these are the same configurations."""
    measure: str = ""
    """What the expected best is told in; empty where it cannot be."""
    best_baseline: float = math.nan
    """The expected best of as many configurations as the side has that was tried less."""
    best_variant: float = math.nan

    @property
    def sentence(self) -> str:
        """In words."""
        if self.together:
            return (
                f"both are among {quantity(self.variant, 'configuration')} of the same parts"
                " that were run"
            )
        said = (
            f"{quantity(self.variant, 'configuration')} of its parts run, {self.baseline} of"
            " the baseline's"
        )
        if self.variant == self.baseline or not self.measure:
            return said
        least = min(self.variant, self.baseline)
        return (
            f"{said}; at {least} each the best is expected at {self.best_variant:.4g}, the"
            " baseline's at"
            f" {self.best_baseline:.4g} ({self.measure}; Dodge et al. 2019)"
        )


@dataclass(frozen=True)
class Sampling:
    """What a variant's validation loss owes to the text it was measured on (`sampling`), in bits
    per byte.
    """

    difference: float
    """The standard error of the mean difference from the baseline over blocks of text."""
    level: float
    """The same of the variant's own mean."""

    @property
    def sentence(self) -> str:
        """In words."""
        return (
            f"of validation.bits_per_byte over blocks of the text: {self.difference:.2g} of the"
            " difference,"
            f" {self.level:.2g} of the level"
        )


@dataclass(frozen=True)
class Comparison:
    """All variants against one baseline."""

    baseline: Variant
    others: list[Variant]
    verdicts: list[Verdict]
    unfair: dict[str, list[str]]
    """For each variant's name, what it does not have in common with the baseline besides what is
    compared.
    """
    notes: list[str]
    rules: Rules
    left_out: dict[str, list[str]] = field(default_factory=dict)
    """For each variant's name, the runs that make no pair, with the reasons."""
    tuning: dict[str, Tuning] = field(default_factory=dict)
    sampling: dict[str, Sampling] = field(default_factory=dict)
    """For each variant's name, where its runs and the baseline's have losses by blocks of text."""
    looked: dict[str, int] = field(default_factory=dict)
    """For each variant's name, how many times it was compared with the baseline before, with other
    seeds.
    """

    @property
    def alpha(self) -> float:
        """How often equal variants may be told apart."""
        return self.rules.alpha


def compare(
    names: Sequence[str],
    baseline: str,
    measures: Sequence[str],
    alpha: float,
    root: Path = Path(),
    anytime: bool = False,
) -> Comparison:
    """Read the runs, find which are of one variant, and judge each variant against the baseline's.

    The baseline is the variant of the run that `baseline` names, with all its seeds; else HEAD's
    own where no names were given, else that of the first run named. Without `measures` those of
    MEASURES are judged, the first of them as primary; `anytime` takes the test that may be looked
    at as often as one likes. Raises UserError where there is nothing to compare.
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
        besides = "".join(f"; {note}" for note in [*notes, *more])
        raise UserError(
            f"there is one variant only, {mine.name} ({quantity(len(mine.runs), 'run')} that"
            " differ in nothing but seeds);"
            f" run another, such as `dvc exp run -S train.optimizer=lion`, or name one{besides}"
        )
    wanted = _measures(measures, kept)
    rules = Rules(alpha, primary="" if measures else MEASURES[0], anytime=anytime)
    waiting = _waiting(library.unfinished(root), variants)
    verdicts = judging.judge_all(
        [*mine.runs, *mine.others],
        {one.name: [*one.runs, *one.others] for one in others},
        wanted,
        name=mine.name,
        leave_out={
            (one.name, measure): why
            for one in others
            for measure in wanted
            if (why := _why_not(measure, mine, one))
        },
        unfinished={name: [_seeds(task) for task in tasks] for name, tasks in waiting.items()},
        rules=rules,
    )
    ledger = trials.tried(library.tried(kept, root))
    primary = wanted[0] if wanted else ""
    return Comparison(
        mine,
        others,
        verdicts,
        unfair={one.name: list(grouping.unfair(mine, one)) for one in others},
        notes=[*notes, *more],
        rules=rules,
        left_out={one.name: list(_left_out(mine, one, verdicts, waiting)) for one in others},
        tuning={one.name: _tuning(ledger, mine, one, primary) for one in others},
        sampling={one.name: found for one in others if (found := _sampling(mine, one))},
        looked=_looked(mine, others, verdicts, rules, root),
    )


def _holds(variant: Variant, run: Run) -> bool:
    return any(one.name == run.name for one in variant.runs)


def _each_once(runs: Sequence[Run]) -> list[Run]:
    once: dict[str, Run] = {}
    for run in runs:
        once.setdefault(run.name, run)
    return list(once.values())


def _own_row(names: list[str], named: list[Run], root: Path) -> list[Run]:
    """The baseline where none was asked for: the first run there is, or what it began from where
    that tells nothing.
    """
    variants = grouping.group(named)[0]
    if len(variants) > 1 or not names:
        return named[:1]
    row = library.siblings(named[0].name, root)
    return row[:1] or named[:1]


def _measures(wanted: Sequence[str], runs: Sequence[Run]) -> list[str]:
    there = list(dict.fromkeys(key for run in runs for key in run.measures))
    if "all" in wanted:
        return [key for key in there if not meaning.is_fact(key, runs)]
    finished = [run for run in runs if not run.broke]
    for measure in wanted:
        none_could = not finished and meaning.direction(
            measure
        )  # all diverged: there is nothing but that to compare
        if (
            not none_could
            and measure not in there
            and not any(observe(run, measure, -1) for run in finished)
        ):
            raise UserError(
                f"no run has the measure {measure!r}; {params.nearest(measure, [*there, 'all'])}"
            )
    return list(dict.fromkeys(wanted)) or [
        key for key in MEASURES if key in there or key == MEASURES[0]
    ]


# ------------------------------------------------------------------------------------------- what
# stands beside a verdict


def _why_not(measure: str, baseline: Variant, variant: Variant) -> str:
    """Why two variants are not to be judged in a measure; empty where they are."""
    sides = [[run for run in one.runs if observe(run, measure, -1)] for one in (baseline, variant)]
    for side, who in zip(sides, ("baseline", "variant")):
        if not side:
            return f"no run of the {who} measured it"
    both = [*sides[0], *sides[1]]
    if meaning.is_per_token(measure, both) and not grouping.same_tokenizer(baseline, variant):
        return "another tokenizer, and it compares only where tokens are the same"
    if unlike := meaning.unlike(measure, [run for run in both if not run.broke]):
        return f"it was not measured alike: {unlike}"
    return ""


def _waiting(
    tasks: Iterable[Unfinished], variants: Sequence[Variant]
) -> dict[str, list[Unfinished]]:
    """The experiments without results, by the name of the variant that their params and their
    commit put them in.

    One whose seeds the variant has a run of is none: it was tried again.
    """
    found: dict[str, list[Unfinished]] = {}
    for task in tasks:
        mattered = grouping.mattering(Run(task.name, task.params, {}))
        apart = {key: value for key, value in mattered.items() if key not in SEEDS}
        for variant in variants:
            began_from = {run.began_from for run in variant.runs}
            known = {run.seeds for run in variant.runs} | {
                _seeds(one) for one in found.get(variant.name, [])
            }
            if (
                task.began_from in began_from
                and apart == variant.params
                and _seeds(task) not in known
            ):
                found.setdefault(variant.name, []).append(task)
    return found


def _seeds(task: Unfinished) -> tuple[Any, ...]:
    return Run(task.name, task.params, {}).seeds


def _left_out(
    baseline: Variant,
    variant: Variant,
    verdicts: Sequence[Verdict],
    waiting: dict[str, list[Unfinished]],
) -> Iterable[str]:
    """The runs of either side that make no pair, a line for each reason."""
    for (one, who), (other, whose) in (
        ((baseline, "baseline"), (variant, "variant")),
        ((variant, "variant"), (baseline, "baseline")),
    ):
        partners = {run.seeds for run in other.runs}
        if alone := [run.name for run in one.runs if run.seeds not in partners]:
            yield (
                f"{quantity(len(alone), 'run')} of the {who}, whose seeds the {whose} has no"
                f" results of: {_few(alone)}"
            )
    for one, who in ((baseline, "baseline"), (variant, "variant")):
        tasks = waiting.get(one.name, [])
        for state in dict.fromkeys(task.state for task in tasks):
            of_state = [task.name for task in tasks if task.state == state]
            yield f"{quantity(len(of_state), 'run')} of the {who}, {state}: {_few(of_state)}"
    judged = [
        one.measure for one in verdicts if one.variant == variant.name and one.words != "no verdict"
    ]
    without: dict[tuple[str, ...], list[str]] = {}
    for measure in judged:
        names = tuple(
            run.name for run in [*baseline.runs, *variant.runs] if not observe(run, measure, -1)
        )
        without.setdefault(names, []).append(measure)
    for names, measures in without.items():
        if names:
            yield (
                f"{quantity(len(names), 'run')} that did not measure {_few(measures)}:"
                f" {_few(names)}"
            )
    undecided: dict[tuple[str, ...], list[str]] = {}
    for measure in judged:
        undecided.setdefault(tuple(_undecided(baseline, variant, measure)), []).append(measure)
    for pairs, measures in undecided.items():
        if pairs:
            said = "whose one run ended short of a target before the other reached it"
            yield f"{quantity(len(pairs), 'pair')} {said} ({_few(measures)}): {_few(pairs)}"


def _undecided(baseline: Variant, variant: Variant, measure: str) -> Iterable[str]:
    """The pairs of runs that were both observed, and of which nobody knows which was the sooner."""
    ours = {run.seeds: run for run in _first_of_seeds(baseline.runs)}
    for run in _first_of_seeds(variant.runs):
        partner = ours.get(run.seeds)
        one, other = (observe(side, measure, -1) if side else None for side in (partner, run))
        if partner and one and other and not (one.ranks_with(other) and other.ranks_with(one)):
            yield f"{partner.name} and {run.name}"


def _first_of_seeds(runs: Sequence[Run]) -> list[Run]:
    """Those that pairs are made of: of several with the same seeds the first."""
    first: dict[Any, Run] = {}
    for run in runs:
        first.setdefault(run.seeds, run)
    return list(first.values())


def _few(names: Sequence[str]) -> str:
    return ", ".join(names[:FEW]) + (f" and {len(names) - FEW} more" if len(names) > FEW else "")


def _tuning(
    ledger: dict[Any, trials.Tried], baseline: Variant, variant: Variant, measure: str
) -> Tuning:
    ours, theirs = (trials.choice(one) for one in (baseline, variant))
    our_tries, their_tries = ledger[ours], ledger[theirs]
    least = min(our_tries.count, their_tries.count)
    best = [
        tries.best_of(least, measure, one.runs[0])
        for tries, one in ((our_tries, baseline), (their_tries, variant))
    ]
    tellable = (
        measure
        if all(map(math.isfinite, best)) and not _why_not(measure, baseline, variant)
        else ""
    )
    return Tuning(our_tries.count, their_tries.count, ours == theirs, tellable, *best)


def _sampling(baseline: Variant, variant: Variant) -> Sampling | None:
    """Over the pairs of the two."""
    ours = {run.seeds: run for run in _first_of_seeds(baseline.runs)}
    pairs = [
        (ours[run.seeds], run)
        for run in variant.runs
        if run.seeds in ours and not run.broke and not ours[run.seeds].broke
    ]
    if _why_not(sampling.MEASURE, baseline, variant):
        return None
    found = Sampling(
        sampling.of_difference(pairs), sampling.of_level([theirs for _, theirs in pairs])
    )
    return found if math.isfinite(found.difference) else None


def _looked(
    baseline: Variant,
    others: Sequence[Variant],
    verdicts: Sequence[Verdict],
    rules: Rules,
    root: Path,
) -> dict[str, int]:
    """How many times each variant was compared before with other seeds, in the measure where that
    was most often.
    """
    by_name = {one.name: one for one in others}
    looks = {
        looking.look(baseline, by_name[verdict.variant], verdict.measure): verdict.variant
        for verdict in verdicts
        if verdict.pairs >= rules.least and verdict.words != "no verdict"
    }
    before = looking.note(list(looks), root)
    found: dict[str, int] = {}
    for look, name in looks.items():
        found[name] = max(found.get(name, 0), before.get(look.key, 0))
    return {name: count for name, count in found.items() if count}


# --------------------------------------------------------------------------------------------------
# for people


def show(found: Comparison, console: Console | None = None) -> None:
    """Print it: for every variant the verdicts in words, then what they rest on, a table, and last
    what to bear in mind.
    """
    console = console or Console(highlight=False)
    if not console.is_terminal:
        console = Console(highlight=False, width=max(console.width, WIDE), file=console.file)

    def say(line: str, style: str = "") -> None:
        """On one line, whatever params and names hold."""
        console.print(printable(line), markup=False, style=style)

    say(f"Baseline: {_who(found.baseline)}")
    for variant in found.others:
        console.print()
        say(f"Against it: {_who(variant)}", "bold")
        verdicts = [verdict for verdict in found.verdicts if verdict.variant == variant.name]
        judged = [verdict for verdict in verdicts if verdict.words != "no verdict"]
        for verdict in judged:
            role = f" [{verdict.role}]" if verdict.role == "secondary" else ""
            say(f"  {verdict.measure}: {verdict.sentence}{role}", "bold")
        for line in _without_verdict(verdicts):
            say(f"  {line}", "bold")
        if not verdicts:
            say("  the two have no measure in common")
        for line in _beside(found, variant):
            say(f"  {line}")
        if judged:
            console.print(_table(judged))
    console.print()
    for line in [*_explained(found), *found.notes]:
        say(f"Note: {line}")


def _who(variant: Variant) -> str:
    names = [run.name for run in variant.runs]
    diverged = sum(bool(run.broke) for run in variant.runs)
    ended = f", {diverged} diverged" if diverged else ""
    return (
        variant.name
        if names == [variant.name] and not diverged
        else (f"{variant.name} ({quantity(len(names), 'run')}{ended}: {_few(names)})")
    )


def _without_verdict(verdicts: Sequence[Verdict]) -> list[str]:
    """The measures that are not judged, a line for each reason."""
    by_reason: dict[str, list[str]] = {}
    for verdict in verdicts:
        if verdict.words == "no verdict":
            by_reason.setdefault(verdict.reason, []).append(verdict.measure)
    return [
        f"{', '.join(measures)}: no verdict: {reason}" for reason, measures in by_reason.items()
    ]


def _beside(found: Comparison, variant: Variant) -> list[str]:
    """What stands beside a variant's verdicts: what differs, what is unfair, what was left out, how
    much was tried.
    """
    lines = _differs(found.baseline, variant)
    lines += [f"unfair: {line}" for line in found.unfair[variant.name]]
    lines += [f"left out: {line}" for line in found.left_out.get(variant.name, [])]
    if tuning := found.tuning.get(variant.name):
        lines.append(f"tuning: {tuning.sentence}")
    if text := found.sampling.get(variant.name):
        lines.append(f"standard error {text.sentence}")
    return lines


def _differs(baseline: Variant, variant: Variant) -> list[str]:
    keys = grouping.differing([baseline.params, variant.params])
    return [f"{key}: {baseline.params[key]} -> {variant.params[key]}" for key in keys]


def _table(verdicts: Sequence[Verdict]) -> Table:
    table = Table(box=None, padding=(0, 1, 0, 2))
    table.add_column("measure", no_wrap=True)
    for title in (
        "pairs",
        "baseline",
        "variant",
        "difference",
        "interval",
        "p",
        "corrected",
        "effect",
    ):
        table.add_column(title, justify="right", no_wrap=True)
    for one in verdicts:
        interval = "" if math.isnan(one.low) else f"{one.low:+.3g} to {one.high:+.3g}"
        table.add_row(
            one.measure,
            str(one.pairs),
            _mean(one.baseline_mean, one.survivors_baseline),
            _mean(one.variant_mean, one.survivors_variant),
            _number(one.difference, "+"),
            interval,
            f"{one.p:.3g}",
            f"{one.corrected:.3g}",
            _number(one.effect, "+", 3),
        )
    return table


def _mean(mean: float, of_survivors: float) -> str:
    return _number(mean) if math.isnan(of_survivors) else f"{_number(of_survivors)}*"


def _number(value: float, sign: str = "", digits: int = 4) -> str:
    return "" if math.isnan(value) else f"{value:{sign}.{digits}g}"


def _explained(found: Comparison) -> list[str]:
    """What the verdicts promise and what they do not, a line each, and only what concerns them."""
    judged = [verdict for verdict in found.verdicts if verdict.words != "no verdict"]
    words = {verdict.words for verdict in judged}
    lines = [_how(found, judged)] if judged else []
    marked = any(
        not math.isnan(side) for v in judged for side in (v.survivors_baseline, v.survivors_variant)
    )
    if any(verdict.test == "ranks" for verdict in judged):
        lines.append(
            "where a run diverged or never reached a target, pairs are judged by ranks, such runs"
            " tied in the last place"
            " (those that were there by the first validation in the first), and there is no mean,"
            " interval or effect"
        )
    if any(verdict.test == "signs" and math.isnan(verdict.difference) for verdict in judged):
        lines.append(
            "a run that diverged or never reached a target is worse than any that has a number"
            " (one that was there by the"
            " first validation, better), and where there is one there is no mean, interval or"
            " effect"
        )
    if marked:
        lines.append("* is the mean of those runs alone that have a number")
    if any(not math.isnan(verdict.low) for verdict in judged):
        lines.append(
            "each interval holds by itself: four at once all held in 0.89 of cases; and where"
            " differences are lopsided over"
            " seeds, 95 % intervals held in 0.84 to 0.93"
        )
    lines.append("only seeds vary here: another text would move levels and differences as well")
    if "too few seeds" in words:
        lines.append(
            f"one comparison alone takes at least {found.rules.least} pairs to show anything at"
            f" {found.alpha:g}, several at"
            " once (variants, measures) take more; --measure names those that matter to you"
        )
    lines += _about_looks(found)
    return lines


def _how(found: Comparison, judged: Sequence[Verdict]) -> str:
    seeds = " and ".join(SEEDS)
    test = "flipping signs of differences"
    if found.rules.anytime:
        test = "betting on signs, valid whenever you look; intervals are of the median difference"
    intervals = (
        f"intervals of at least {100 * (1 - found.alpha):g} % and "
        if any(v.low == v.low for v in judged)
        else ""
    )
    line = f"paired by {seeds}; {intervals}p by {test}"
    for role in dict.fromkeys(verdict.role for verdict in judged):
        count = max(verdict.compared for verdict in judged if verdict.role == role)
        who = {
            "primary": "the primary measure ",
            "secondary": "the secondary ones, among themselves, ",
        }.get(role, "")
        if count > 1:
            line += f", {who}corrected for {count} comparisons (Holm)"
    if found.rules.primary and any(verdict.role == "secondary" for verdict in judged):
        line += f"; {found.rules.primary} is primary, and judged as if alone"
    return line


def _about_looks(found: Comparison) -> list[str]:
    if found.rules.anytime:
        return []
    instead = (
        "--anytime holds however often you look; for K looks planned before, --alpha"
        f" {found.alpha:g}/K does"
    )
    if not found.looked:
        return [f"the error promised is for one look: {instead}"]
    often = max(found.looked.values())
    return [
        f"LOOKED AT BEFORE with other seeds ({quantity(often, 'time')}): whoever looks again"
        " after each seed tells equal"
        f" variants apart by the twentieth seed in 17 % of cases and not in 5 %; {instead}"
    ]


# --------------------------------------------------------------------------------------------------
# for machines


def as_json(found: Comparison) -> str:
    """The whole comparison; what is no finite number becomes null."""
    variants = [
        {
            "name": variant.name,
            "runs": [run.name for run in variant.runs],
            "diverged": _diverged(variant),
            "differs": {
                key: [found.baseline.params[key], variant.params[key]]
                for key in grouping.differing([found.baseline.params, variant.params])
            },
            "unfair": found.unfair[variant.name],
            "left_out": found.left_out.get(variant.name, []),
            "tuning": _finite(asdict(found.tuning[variant.name]))
            if variant.name in found.tuning
            else None,
            "text_standard_error": asdict(found.sampling[variant.name])
            if variant.name in found.sampling
            else None,
            "looked_before": found.looked.get(variant.name, 0),
            "verdicts": [
                _plain(verdict) for verdict in found.verdicts if verdict.variant == variant.name
            ],
        }
        for variant in found.others
    ]
    baseline = {
        "name": found.baseline.name,
        "runs": [run.name for run in found.baseline.runs],
        "diverged": _diverged(found.baseline),
    }
    rules = asdict(found.rules)
    whole = {
        **rules,
        "baseline": baseline,
        "variants": variants,
        "explained": _explained(found),
        "notes": found.notes,
    }
    return json.dumps(whole, indent=2, ensure_ascii=False, allow_nan=False)


def _diverged(variant: Variant) -> dict[str, str]:
    """How its runs diverged that did."""
    return {run.name: run.broke for run in variant.runs if run.broke}


def _plain(verdict: Verdict) -> dict[str, Any]:
    return _finite(asdict(verdict) | {"sentence": verdict.sentence})


def _finite(values: dict[str, Any]) -> dict[str, Any]:
    return {
        key: None if isinstance(value, float) and not math.isfinite(value) else value
        for key, value in values.items()
    }


def as_csv(found: Comparison) -> str:
    """A row for each verdict; what is no finite number is empty, and lists such as `unfair` have
    semicolons between.
    """
    rows = [
        {**_plain(verdict), "alpha": found.alpha, **_beside_row(found, verdict.variant)}
        for verdict in found.verdicts
    ]
    text = io.StringIO()
    writer = csv.DictWriter(text, list(rows[0]) if rows else ["measure"], lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def _beside_row(found: Comparison, name: str) -> dict[str, Any]:
    tuning, text = found.tuning.get(name), found.sampling.get(name)
    return {
        "anytime": found.rules.anytime,
        "unfair": "; ".join(found.unfair[name]),
        "left_out_runs": "; ".join(found.left_out.get(name, [])),
        "looked_before": found.looked.get(name, 0),
        "tried_baseline": tuning.baseline if tuning else None,
        "tried_variant": tuning.variant if tuning else None,
        "best_baseline": _finite(asdict(tuning))["best_baseline"] if tuning else None,
        "best_variant": _finite(asdict(tuning))["best_variant"] if tuning else None,
        "text_error_difference": text.difference if text else None,
        "text_error_level": text.level if text else None,
    }
