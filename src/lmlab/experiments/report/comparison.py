"""Sections on how variants differ: verdicts, what is unfair, the test split, params."""

import math
from collections.abc import Mapping, Sequence

from lmlab.experiments.compare.run import MEASURES, Run
from lmlab.experiments.compare.variants import differing, mattering
from lmlab.experiments.compare.verdicts import Verdict
from lmlab.experiments.openings import Opening, ordinal
from lmlab.experiments.report.elements import (
    Element,
    Fold,
    Heading,
    Interval,
    Note,
    Section,
    Table,
    VerdictWords,
)
from lmlab.experiments.report.numbers import fixed, signed
from lmlab.experiments.report.shown import Shown, read_json
from lmlab.experiments.wording import quantity

VERDICT_COLUMNS = (
    *("variant", "measure", "verdict", ""),
    *("difference", "interval", "pairs", "p, corrected"),
)
TEST_COLUMNS = (
    *("", "on", "test, bits/byte", "Kneser-Ney n-gram"),
    *("opening of this split", "runs by then"),
)


def verdicts_section(verdicts: Sequence[Verdict], shown: Shown) -> Section | None:
    """The verdicts on variants that were scored on the baseline's text."""
    if not verdicts:
        return None
    baseline = verdicts[0].baseline
    intro = (
        f"Against {shown.label.get(baseline, baseline)}, paired by seed. Intervals and p-values are"
        " those of the permutation test that flips the signs of paired differences, with Holm's"
        " correction for all comparisons made here."
    )
    other_texts = list(shown.texts.values())[1:]
    names = [shown.all_variants[number].name for numbers in other_texts for number in numbers]
    content: list[Element] = []
    if names:
        listed = ", ".join(shown.label[name] for name in names)
        content.append(Note(f"No verdict on variants scored on another text: {listed}."))
    kept = [verdict for verdict in verdicts if verdict.variant not in names]
    reach = {verdict.measure: _reach(kept, verdict.measure) for verdict in kept}
    rows = [_verdict_row(verdict, shown, reach[verdict.measure]) for verdict in kept]
    if rows:
        content.append(Table(VERDICT_COLUMNS, rows, "verdicts"))
    return Section("Verdicts", intro, content)


def _reach(verdicts: Sequence[Verdict], measure: str) -> float:
    """How far from 0 the pictures of one measure's intervals have to go."""
    of_measure = [verdict for verdict in verdicts if verdict.measure == measure]
    ends = [end for verdict in of_measure for end in _ends(verdict) if math.isfinite(end)]
    return max(map(abs, ends), default=0.0)


def _ends(verdict: Verdict) -> tuple[float, float, float]:
    return verdict.difference, verdict.low, verdict.high


def _verdict_row(verdict: Verdict, shown: Shown, reach: float) -> list[object]:
    style = verdict.words.replace(" ", "-")
    head, _, rest = verdict.sentence.partition(" (")
    detail = f"({rest}" if rest else ""
    has_interval = math.isfinite(verdict.low) and math.isfinite(verdict.high)
    low, high = (verdict.low, verdict.high) if has_interval else (None, None)
    can_be_drawn = math.isfinite(verdict.difference) and reach > 0
    picture = Interval(style, verdict.difference, low, high, reach) if can_be_drawn else ""
    interval = f"{signed(verdict.low)} to {signed(verdict.high)}"
    return [
        shown.label.get(verdict.variant, verdict.variant),
        verdict.measure,
        VerdictWords(style, head, detail),
        picture,
        signed(verdict.difference),
        interval if math.isfinite(verdict.low) else "-",
        verdict.pairs,
        f"{verdict.corrected:.2g}" if math.isfinite(verdict.corrected) else "-",
    ]


def unfair_element(unfair: Mapping[str, Sequence[str]], shown: Shown) -> Fold | None:
    """What variants do not have in common with the baseline besides what is compared.

    Each kind of difference stands once, with the variants it is about.
    """
    kinds: dict[str, dict[str, list[str]]] = {}
    for name, lines in unfair.items():
        for line in lines:
            kind = line.partition(":")[0].partition(" (")[0]
            detail = line.removeprefix(kind).lstrip(": ")
            labels = kinds.setdefault(kind, {}).setdefault(detail, [])
            labels.append(shown.label.get(name, name))
    if not kinds:
        return None
    content: list[Element] = []
    for kind, details in kinds.items():
        rows = [[", ".join(labels), detail] for detail, labels in details.items()]
        content += [Heading(kind[0].upper() + kind[1:]), Table(("variants", ""), rows)]
    count = sum(map(bool, unfair.values()))
    verb = "does" if count == 1 else "do"
    variants = quantity(count, "variant")
    summary = f"Unfair: what {variants} {verb} not have in common with the baseline"
    return Fold(summary, content, "unfair")


def test_split_section(runs: Sequence[Run], openings: Sequence[Opening]) -> Section | None:
    """What `lmlab final` has read on the test split for these runs, matched by their weights."""
    rows = []
    for run in runs:
        weights = (read_json(run, MEASURES) or {}).get("weights_sha256")
        for opening in openings:
            if weights and opening.weights_sha256 == weights:
                rows.append(_opening_row(run, opening))
    if not rows:
        return None
    intro = (
        "Opened by lmlab final, which counts how often: the more often it was opened, the less it"
        " is a test."
    )
    return Section("Test split", intro, [Table(TEST_COLUMNS, rows)])


def _opening_row(run: Run, opening: Opening) -> list[object]:
    return [
        run.name,
        opening.date[:10],
        fixed(opening.bits_per_byte),
        fixed(opening.kneser_ney),
        ordinal(opening.opened),
        opening.runs,
    ]


def params_section(shown: Shown) -> Section | None:
    """The params that tell variants apart, and all others that mattered, folded away."""
    if not shown.variants:
        return None
    params = [variant.params for variant in shown.variants]
    keys = differing(params) if len(params) > 1 else []
    content: list[Element] = []
    if keys:
        rows = [[key, *(str(block.get(key, "")) for block in params)] for key in keys]
        content.append(Table(["", *shown.labels], rows))
    content.append(Fold(f"{'all others' if keys else 'all'} that mattered", [_others(shown, keys)]))
    return Section("Params that differ" if keys else "Params", "", content)


def _others(shown: Shown, keys: Sequence[str]) -> Table:
    blocks = [mattering(run) for _, run in shown.first_runs()]
    all_keys = dict.fromkeys(key for block in blocks for key in block)
    others = [key for key in all_keys if key not in keys]
    values = {key: {repr(block.get(key)) for block in blocks} for key in others}
    if all(len(distinct) == 1 for distinct in values.values()):
        return Table(["", "value"], [[key, str(blocks[0][key])] for key in others])
    # seeds differ, or options of parts that only some variants use
    rows = [[key, *(str(block.get(key, "")) for block in blocks)] for key in others]
    return Table(["", *shown.labels], rows)
