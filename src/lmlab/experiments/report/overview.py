"""The top of the report: what was run and what came out, beside references."""

from collections.abc import Iterator, Sequence

import pandas as pd

from lmlab.experiments.compare.run import Run
from lmlab.experiments.report import charts
from lmlab.experiments.report.elements import (
    Chart,
    Element,
    Fold,
    Lead,
    Note,
    Section,
    Table,
    without_empty_columns,
)
from lmlab.experiments.report.numbers import fixed, words
from lmlab.experiments.report.shown import (
    BITS,
    KNESER_NEY,
    MOST_VARIANTS,
    Shown,
    described_text,
    mean,
)
from lmlab.experiments.wording import quantity

REFERENCES = {"kneser_ney": "Kneser-Ney n-gram", "unigram": "unigram", "uniform": "uniform"}
ENTROPY = "references.source_entropy"
MOST_NOTES = 3
"""Notes that are not folded away."""
MOST_ROWS = 12
"""Runs whose table is not folded away."""
RUN_COLUMNS = {
    BITS: "validation, bits/byte",
    "test.bits_per_byte": "test, bits/byte",
    "parameters": "parameters",
    "tokens_seen": "training tokens",
}


def overview(runs: Sequence[Run], shown: Shown, notes: Sequence[str]) -> Section:
    """The sentence, the chart of references for each text, the notes, and a row for each run."""
    content: list[Element] = []
    if shown.variants:
        content.append(Lead(_sentences(runs, shown)))
        content += _reference_charts(shown)
    content += _notes(notes, len(shown.all_variants))
    content += _run_table(runs)
    return Section("", "", content)


def _reference_charts(shown: Shown) -> Iterator[Chart]:
    for text, numbers in shown.texts.items():
        drawn = [number for number in numbers if number < len(shown.variants)]
        rows = _bars(shown, drawn)
        if rows:
            of_text = f" of {text}" if len(shown.texts) > 1 else ""
            title = f"Cross-entropy on the validation text{of_text}, bits per byte"
            yield Chart(charts.references(pd.DataFrame(rows), shown.names), title)


def _bars(shown: Shown, drawn: Sequence[int]) -> list[dict[str, object]]:
    """A row for each variant that has a mean, then one for each reference on the same text."""
    if not drawn:
        return []
    rows: list[dict[str, object]] = []
    for number in drawn:
        bits = mean(shown.variants[number], BITS)
        if bits is not None:
            label, name = shown.labels[number], shown.names[number]
            rows.append({"what": label, "name": name, "bits": bits, "variant": number})
    measures = shown.variants[drawn[0]].runs[0].measures
    keys = {f"references.validation.{key}": title for key, title in REFERENCES.items()}
    keys[ENTROPY] = "entropy of the source"
    for key, title in keys.items():
        if key in measures:
            rows.append({"what": title, "name": title, "bits": measures[key]})
    return rows


def _notes(notes: Sequence[str], variants: int) -> list[Element]:
    lines = list(notes)
    if variants > MOST_VARIANTS:
        lines.insert(0, f"Only the first {MOST_VARIANTS} of {variants} variants are drawn.")
    elements: list[Element] = [Note(line) for line in lines]
    if len(elements) > MOST_NOTES:
        return [Fold(f"{len(elements)} notes on these runs", elements)]
    return elements


def _run_table(runs: Sequence[Run]) -> list[Element]:
    if len(runs) < 2:
        return []
    rows = []
    for run in runs:
        numbers = [fixed(run.measures.get(key)) for key in RUN_COLUMNS]
        rows.append([run.name, run.diverged.partition(":")[0], *numbers])
    table: Table = without_empty_columns(["", "", *RUN_COLUMNS.values()], rows)
    return [Fold("every run", [table])] if len(runs) > MOST_ROWS else [table]


def _sentences(runs: Sequence[Run], shown: Shown) -> str:
    """What was run, on which text, and what came out."""
    results = [_result(text, numbers, shown) for text, numbers in shown.texts.items()]
    sentences = [_subject(runs, shown), _diverged(runs), *results]
    return " ".join(sentence for sentence in sentences if sentence)


def _subject(runs: Sequence[Run], shown: Shown) -> str:
    first = shown.all_variants[0].runs[0]
    texts = list(shown.texts)
    if len(shown.all_variants) == 1:
        model = words(str(first.params.get("train.model", "model")))
        rule = words(str(first.params.get("train.learning_rule", "")))
        parameters = first.measures.get("parameters", 0)
        tokens = first.measures.get("tokens_seen", 0)
        trained = f" trained by {rule}" if rule else " trained"
        sentence = (
            f"A {model} of {parameters:,.0f} parameters,{trained} on {tokens:,.0f} tokens of"
            f" {described_text(first)}."
        )
        seeds = f" {len(runs)} runs differ in nothing but their seeds."
        return sentence + seeds if len(runs) > 1 else sentence
    counts = f"{quantity(len(runs), 'run')} of {quantity(len(shown.all_variants), 'variant')}"
    if len(texts) == 1:
        return f"{counts} on {described_text(first)}."
    return (
        f"{counts} on {len(texts)} texts, {', '.join(texts[:-1])} and {texts[-1]}."
        " Scores on different texts do not compare."
    )


def _diverged(runs: Sequence[Run]) -> str:
    diverged = [run for run in runs if run.diverged]
    if len(diverged) == len(runs) == 1:
        return f"It {diverged[0].diverged}."
    return f"{len(diverged)} of the {len(runs)} runs diverged." if diverged else ""


def _result(text: str, numbers: Sequence[int], shown: Shown) -> str:
    """The lowest cross-entropy on one text, and those of the references there."""
    means = {}
    for number in numbers:
        bits = mean(shown.all_variants[number], BITS)
        if bits is not None:
            means[number] = bits
    if not means:
        return ""
    best = shown.all_variants[min(means, key=means.__getitem__)]
    of_text = f" of {text}" if len(shown.texts) > 1 else ""
    sentence = f"Validation text{of_text}: {min(means.values()):.3f} bits per byte"
    if len(shown.all_variants) > 1:
        sentence += f" in “{shown.label[best.name]}”"
    if len(best.runs) > 1:
        sentence += f", mean of {quantity(len(best.runs), 'seed')}"
    if len(means) > 1:
        sentence += (
            f", the lowest of {len(means)} variants (the verdicts say which differences are more"
            " than chance)"
        )
    return sentence + _references(shown.all_variants[numbers[0]].runs[0]) + "."


def _references(run: Run) -> str:
    """What an n-gram model scores, and the least that any model can."""
    clauses = ""
    n_gram = run.measures.get(KNESER_NEY)
    if n_gram is not None:
        order = run.measures.get("references.kneser_ney_order")
        kind = f"{order:.0f}-gram" if order else "n-gram"
        clauses += f"; a Kneser-Ney {kind} model scores {n_gram:.3f}"
    entropy = run.measures.get(ENTROPY)
    if entropy is not None:
        clauses += f"; the entropy of the source, {entropy:.3f}, is the least possible"
    return clauses
