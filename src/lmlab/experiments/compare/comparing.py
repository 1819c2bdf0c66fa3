"""`lmlab compare`: finished runs gathered into variants, each judged against a baseline.

`rendering` prints the comparison, as text, JSON or CSV.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from lmlab.core import params
from lmlab.core.errors import UserError
from lmlab.experiments.compare import (
    history,
    left_out,
    looks,
    meaning,
    run_files,
    sampling,
    trials,
    variants,
    verdicts,
)
from lmlab.experiments.compare.history import Unfinished
from lmlab.experiments.compare.pairing import Seeds, is_observed
from lmlab.experiments.compare.run import SEEDS, Run
from lmlab.experiments.compare.sampling import Sampling
from lmlab.experiments.compare.trials import Tuning
from lmlab.experiments.compare.variants import Variant
from lmlab.experiments.compare.verdict import Verdict
from lmlab.experiments.compare.verdicts import Rules
from lmlab.experiments.wording import quantity

MEASURES = ("validation.bits_per_byte", "validation.accuracy", "validation.calibration_error")
"""What is compared unless something else is asked for. The first is primary: it is judged as if it
were the only one.
"""


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
    """For each variant's name."""
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

    The baseline is the variant of the run that `baseline` names, with all its seeds; otherwise
    HEAD's own where no names were given, and that of the first run where some were. Without
    `measures` those of MEASURES are judged, the first of them as primary; `anytime` takes the test
    that may be looked at as often as one likes. Raises UserError where there is nothing to compare.
    """
    runs, first, notes = _gather(names, baseline, root)
    if any(measure == "all" or measure.startswith("timing.") for measure in measures):
        runs = [run_files.timed(run) for run in runs]
    grouped, notes_on_seeds = variants.group(runs)
    notes = [*notes, *notes_on_seeds]
    own = next(variant for variant in grouped if _holds(variant, first))
    others = [variant for variant in grouped if variant is not own]
    if not others:
        besides = "".join(f"; {note}" for note in notes)
        raise UserError(
            f"there is one variant only, {own.name} ({quantity(len(own.runs), 'run')} that differ"
            " in nothing but seeds); run another, such as `dvc exp run -S train.optimizer=lion`,"
            f" or name one{besides}"
        )
    judged_measures = _measures(measures, runs)
    rules = Rules(alpha, primary="" if measures else MEASURES[0], anytime=anytime)
    unfinished = _unfinished_of(history.unfinished(root), grouped)
    judged = _judge(own, others, judged_measures, unfinished, rules)
    ledger = trials.tried(history.tried(runs, root))
    primary = judged_measures[0] if judged_measures else ""
    tuning, samples = {}, {}
    for variant in others:
        comparable = not _why_not(primary, own, variant)
        tuning[variant.name] = trials.tuning(ledger, own, variant, primary, comparable)
        sample = _sampling(own, variant)
        if sample:
            samples[variant.name] = sample
    return Comparison(
        baseline=own,
        others=others,
        verdicts=judged,
        unfair={variant.name: list(variants.unfair(own, variant)) for variant in others},
        notes=notes,
        rules=rules,
        left_out={
            variant.name: list(left_out.lines(own, variant, judged, unfinished))
            for variant in others
        },
        tuning=tuning,
        sampling=samples,
        looked=_looked(own, others, judged, rules, root),
    )


# --------------------------------------------------------------------------------------------------
# which runs


def _gather(names: Sequence[str], baseline: str, root: Path) -> tuple[list[Run], Run, list[str]]:
    """The runs to compare, the baseline's first run, and notes.

    To the runs that were named come those of the baseline's variant, with all its seeds.
    """
    named, notes = history.gather(list(names), root)
    own_runs = history.read([baseline], root) if baseline else _default(names, named, root)
    first = own_runs[0]
    pool = _each_once([*own_runs, *named, *history.siblings(first.name, root, named)])
    own = next(variant for variant in variants.group(pool)[0] if _holds(variant, first))
    return _each_once([*own.runs, *own_runs, *named]), first, notes


def _default(names: Sequence[str], named: list[Run], root: Path) -> list[Run]:
    """The baseline where none was asked for: the first run.

    Where the named runs are all of one variant, the run of the commit that the first began from.
    """
    if names and len(variants.group(named)[0]) == 1:
        siblings = history.siblings(named[0].name, root)
        if siblings:
            return siblings[:1]
    return named[:1]


def _holds(variant: Variant, run: Run) -> bool:
    return any(each.name == run.name for each in variant.runs)


def _each_once(runs: Sequence[Run]) -> list[Run]:
    by_name: dict[str, Run] = {}
    for run in runs:
        by_name.setdefault(run.name, run)
    return list(by_name.values())


def _unfinished_of(
    experiments: Iterable[Unfinished], grouped: Sequence[Variant]
) -> dict[str, list[Unfinished]]:
    """The experiments without results, by the name of the variant they are of.

    Their params and the commit they began from decide that. One whose seeds the variant has a run
    of is left out: it was tried again.
    """
    by_variant: dict[str, list[Unfinished]] = {}
    for experiment in experiments:
        mattered = variants.mattering(_as_run(experiment))
        apart_from_seeds = {key: value for key, value in mattered.items() if key not in SEEDS}
        for variant in grouped:
            listed = by_variant.get(variant.name, [])
            known_seeds = {run.seeds for run in variant.runs} | {_seeds(each) for each in listed}
            if (
                experiment.began_from in {run.began_from for run in variant.runs}
                and apart_from_seeds == variant.params
                and _seeds(experiment) not in known_seeds
            ):
                by_variant.setdefault(variant.name, []).append(experiment)
    return by_variant


def _as_run(experiment: Unfinished) -> Run:
    return Run(experiment.name, experiment.params, {})


def _seeds(experiment: Unfinished) -> Seeds:
    return _as_run(experiment).seeds


# --------------------------------------------------------------------------------------------------
# which measures


def _measures(asked_for: Sequence[str], runs: Sequence[Run]) -> list[str]:
    """The measures to judge. Raises UserError for one that no run has."""
    present: dict[str, None] = {}
    for run in runs:
        present |= dict.fromkeys(run.measures)
    if "all" in asked_for:
        return [measure for measure in present if not meaning.is_fact(measure, runs)]
    finished = [run for run in runs if not run.diverged]
    for measure in asked_for:
        # where all runs diverged, that is what there is to compare, whatever the measure
        could_not_be_measured = not finished and meaning.direction(measure)
        observed = measure in present or any(is_observed(run, measure) for run in finished)
        if not observed and not could_not_be_measured:
            raise UserError(
                f"no run has the measure {measure!r}; {params.nearest(measure, [*present, 'all'])}"
            )
    if asked_for:
        return list(dict.fromkeys(asked_for))
    return [measure for measure in MEASURES if measure in present or measure == MEASURES[0]]


def _why_not(measure: str, baseline: Variant, variant: Variant) -> str:
    """Why two variants are not to be judged in a measure; empty where they are."""
    ours = [run for run in baseline.runs if is_observed(run, measure)]
    theirs = [run for run in variant.runs if is_observed(run, measure)]
    if not ours:
        return "no run of the baseline measured it"
    if not theirs:
        return "no run of the variant measured it"
    both = [*ours, *theirs]
    if meaning.is_per_token(measure, both) and not variants.same_tokenizer(baseline, variant):
        return "another tokenizer, and it compares only where tokens are the same"
    difference = meaning.unlike(measure, [run for run in both if not run.diverged])
    return f"it was not measured alike: {difference}" if difference else ""


# --------------------------------------------------------------------------------------------------
# verdicts and what stands beside them


def _judge(
    baseline: Variant,
    others: Sequence[Variant],
    measures: Sequence[str],
    unfinished: dict[str, list[Unfinished]],
    rules: Rules,
) -> list[Verdict]:
    reasons: dict[tuple[str, str], str] = {}
    for variant in others:
        for measure in measures:
            reason = _why_not(measure, baseline, variant)
            if reason:
                reasons[variant.name, measure] = reason
    return verdicts.judge_all(
        [*baseline.runs, *baseline.others],
        {variant.name: [*variant.runs, *variant.others] for variant in others},
        measures,
        name=baseline.name,
        leave_out=reasons,
        unfinished={
            name: [_seeds(experiment) for experiment in experiments]
            for name, experiments in unfinished.items()
        },
        rules=rules,
    )


def _sampling(baseline: Variant, variant: Variant) -> Sampling | None:
    """Over the pairs of the two in which both runs finished."""
    if _why_not(sampling.MEASURE, baseline, variant):
        return None
    pairs = [
        (ours, theirs)
        for ours, theirs in variants.paired_runs(baseline, variant)
        if not ours.diverged and not theirs.diverged
    ]
    return sampling.sample(pairs)


def _looked(
    baseline: Variant,
    others: Sequence[Variant],
    judged: Sequence[Verdict],
    rules: Rules,
    root: Path,
) -> dict[str, int]:
    """How many times each variant was compared before with other seeds.

    In the measure where that was most often. This comparison is noted.
    """
    by_name = {variant.name: variant for variant in others}
    now = {
        looks.look(baseline, by_name[verdict.variant], verdict.measure): verdict.variant
        for verdict in judged
        if verdict.pairs >= rules.least and verdict.judged
    }
    before = looks.note(list(now), root)
    counts: dict[str, int] = {}
    for look, name in now.items():
        count = before.get(look.key, 0)
        if count > counts.get(name, 0):
            counts[name] = count
    return counts
