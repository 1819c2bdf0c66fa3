"""The runs that a verdict does not rest on, in words: unpaired, unfinished, not measured or not
ranked.
"""

from collections.abc import Iterator, Mapping, Sequence

from lmlab.experiments.compare.history import Unfinished
from lmlab.experiments.compare.pairing import is_observed, observe
from lmlab.experiments.compare.run import Run
from lmlab.experiments.compare.variants import Variant, paired_runs
from lmlab.experiments.compare.verdict import Verdict
from lmlab.experiments.wording import few, quantity

MOST_NAMED = 4
"""Names that are listed before it is said how many more there are."""


def lines(
    baseline: Variant,
    variant: Variant,
    verdicts: Sequence[Verdict],
    unfinished: Mapping[str, Sequence[Unfinished]],
) -> Iterator[str]:
    """The runs of either side that make no pair, a line for each reason."""
    yield from _without_partner(baseline, "baseline", variant, "variant")
    yield from _without_partner(variant, "variant", baseline, "baseline")
    for side, side_name in ((baseline, "baseline"), (variant, "variant")):
        yield from _unfinished(unfinished.get(side.name, ()), side_name)
    judged = [
        verdict.measure
        for verdict in verdicts
        if verdict.variant == variant.name and verdict.judged
    ]
    yield from _not_measured([*baseline.runs, *variant.runs], judged)
    yield from _not_ranked(baseline, variant, judged)


def _without_partner(
    side: Variant, side_name: str, other: Variant, other_name: str
) -> Iterator[str]:
    partners = {run.seeds for run in other.runs}
    alone = [run.name for run in side.runs if run.seeds not in partners]
    if alone:
        yield (
            f"{quantity(len(alone), 'run')} of the {side_name}, whose seeds the {other_name} has"
            f" no results of: {few(alone, MOST_NAMED)}"
        )


def _unfinished(experiments: Sequence[Unfinished], side_name: str) -> Iterator[str]:
    by_state: dict[str, list[str]] = {}
    for experiment in experiments:
        by_state.setdefault(experiment.state, []).append(experiment.name)
    for state, names in by_state.items():
        yield (
            f"{quantity(len(names), 'run')} of the {side_name}, {state}: {few(names, MOST_NAMED)}"
        )


def _not_measured(runs: Sequence[Run], measures: Sequence[str]) -> Iterator[str]:
    measures_by_runs: dict[tuple[str, ...], list[str]] = {}
    for measure in measures:
        names = tuple(run.name for run in runs if not is_observed(run, measure))
        measures_by_runs.setdefault(names, []).append(measure)
    for names, of_names in measures_by_runs.items():
        if names:
            yield (
                f"{quantity(len(names), 'run')} that did not measure {few(of_names, MOST_NAMED)}:"
                f" {few(names, MOST_NAMED)}"
            )


def _not_ranked(baseline: Variant, variant: Variant, measures: Sequence[str]) -> Iterator[str]:
    """Pairs with two observations of which nobody knows which was the sooner."""
    measures_by_pairs: dict[tuple[str, ...], list[str]] = {}
    for measure in measures:
        pairs = []
        for ours, theirs in paired_runs(baseline, variant):
            our_result, their_result = observe(ours, measure, -1), observe(theirs, measure, -1)
            if our_result and their_result and not our_result.ranks_with(their_result):
                pairs.append(f"{ours.name} and {theirs.name}")
        measures_by_pairs.setdefault(tuple(pairs), []).append(measure)
    for names, of_names in measures_by_pairs.items():
        if names:
            yield (
                f"{quantity(len(names), 'pair')} of which it is not known which run was first at a"
                " target, as one ended short of it or was there before its first validation"
                f" ({few(of_names, MOST_NAMED)}): {few(names, MOST_NAMED)}"
            )
