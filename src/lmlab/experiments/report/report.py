"""The report: one page, one file, that shows what runs came to and how they differ. It loads
nothing from anywhere.

Runs that differ in nothing but seeds share a colour. Whatever a run does not have (probes, a
close-up, a table that older code did not write) is left out without a word. What was scored on
different texts is never ranked, nor is a mean taken over runs of which one diverged.
"""

import io
import json
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from html import escape
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from altair.utils.schemapi import debug_mode

from lmlab.experiments.compare import variants as grouping
from lmlab.experiments.compare.labels import labels
from lmlab.experiments.compare.run import MEASURES, Run
from lmlab.experiments.compare.variants import Variant, differing, mattering
from lmlab.experiments.compare.verdicts import Verdict
from lmlab.experiments.openings import Opening, ordinal
from lmlab.experiments.report import charts
from lmlab.experiments.report.page import Markup, Page, as_text, fixed, rounded, signed
from lmlab.experiments.wording import quantity

MOST_VARIANTS = 8
"""That are drawn: as many as there are colours that can be told apart."""
MOST_SEEDS = 5
"""Runs of each variant whose curves are drawn."""
MOST_POINTS = 200
"""Of a run's training curve that are drawn: more cannot be seen."""
TIMED = ("download", "tokenizer", "shard", "train", "evaluate", "probe")
REFERENCES = {"kneser_ney": "Kneser-Ney n-gram", "unigram": "unigram", "uniform": "uniform"}
BITS = "validation.bits_per_byte"
MOST_NOTES = 3
"""That stand on the page unfolded."""


def thinned(table: pd.DataFrame) -> pd.DataFrame:
    """At most about MOST_POINTS of a table's rows: all of the first, where most happens, some of
    the others, the last.
    """
    few = MOST_POINTS // 4
    every = -(-(len(table) - few) // (MOST_POINTS - few))
    return pd.concat([table[:few], table[few:][::-1][::every][::-1]]) if every > 1 else table


@dataclass(frozen=True)
class Shown:
    """What a section is made of: the variants that are drawn, each with a colour, a name and a
    label.
    """

    whole: list[Variant]
    """All there are, drawn or not."""

    @property
    def variants(self) -> list[Variant]:
        return self.whole[:MOST_VARIANTS]

    @property
    def names(self) -> list[str]:
        return [variant.name for variant in self.variants]

    @property
    def labels(self) -> list[str]:
        """Short names, for what has little room."""
        return [self.label[name] for name in self.names]

    @cached_property
    def label(self) -> dict[str, str]:
        """The label of each variant, drawn or not, by its name."""
        return dict(zip([variant.name for variant in self.whole], labels(self.whole), strict=True))

    @cached_property
    def texts(self) -> dict[str, list[int]]:
        """The texts that variants were scored on, by name, each with the numbers of its variants,
        drawn or not.
        """
        return _texts(self.whole)

    def runs(self) -> Iterator[tuple[int, Run]]:
        """The runs whose curves are drawn, with the number of their variant."""
        for number, variant in enumerate(self.variants):
            for run in variant.runs[:MOST_SEEDS]:
                yield number, run

    def firsts(self) -> Iterator[tuple[str, Run]]:
        """Each variant's label and first run, for what is shown of one run."""
        for label, variant in zip(self.labels, self.variants, strict=True):
            yield label, variant.runs[0]

    def joined(self, curve: str, *needed: str) -> pd.DataFrame | None:
        """One of the runs' tables, of all that have it with these columns; None where none has."""
        tables = [
            thinned(run.curves[curve]).assign(variant=number, run=run.name)
            for number, run in self.runs()
            if curve in run.curves and len(run.curves[curve]) and {*needed} <= {*run.curves[curve]}
        ]
        return pd.concat(tables, ignore_index=True) if tables else None


def write(
    runs: Sequence[Run],
    target: Path,
    verdicts: Sequence[Verdict] = (),
    notes: Sequence[str] = (),
    unfair: Mapping[str, Sequence[str]] | None = None,
    opened: Sequence[Opening] = (),
) -> None:
    """Write the page for these runs, the first of which is what others are held against.

    `notes` are lines for it, `unfair` is what each variant does not have in common with the
    baseline, by the variant's name, and `opened` are the openings of test splits, of which those of
    these runs are shown.
    """
    whole = (
        replace(one, runs=[run for run in one.runs if run.measures or run.diverged])
        for one in grouping.group(runs)[0]
    )
    shown = Shown([variant for variant in whole if variant.runs])
    page = Page()
    with debug_mode(charts.CHECKED):
        _lead(page, runs, shown)
        _notes(page, notes, len(shown.whole))
        _runs(page, runs)
        _verdicts(page, verdicts, shown)
        _unfair(page, unfair or {}, shown)
        _test(page, runs, opened)
        for section in (
            _params,
            _curves,
            _samples,
            _calibration,
            _positions,
            _classes,
            _probes,
            _close_up,
            _tokenizers,
        ):
            section(page, shown)
        _costs(page, shown)
        _measures(page, shown)
    title = (
        f"Report: {shown.names[0]}"
        if len(shown.names) == 1
        else f"Report: {quantity(len(shown.whole), 'variant')}"
    )
    legend = list(zip(shown.labels, shown.names, strict=True)) if len(shown.names) > 1 else []
    page.write(target, title, legend)


# --------------------------------------------------------------------------------------------------
# sections


def _lead(page: Page, runs: Sequence[Run], shown: Shown) -> None:
    if not shown.variants:
        return
    page.add(f'<p class="lead">{escape(_sentence(runs, shown))}</p>')
    for text, numbers in shown.texts.items():
        drawn = [number for number in numbers if number < len(shown.variants)]
        rows = [
            {
                "what": shown.labels[number],
                "name": shown.names[number],
                "bits": mean,
                "variant": number,
            }
            for number in drawn
            if (mean := _mean(shown.variants[number], BITS)) is not None
        ]
        if not drawn:
            continue
        first = shown.variants[drawn[0]].runs[0]
        levels = {
            title: first.measures.get(f"references.validation.{key}")
            for key, title in REFERENCES.items()
        }
        levels["entropy of the source"] = first.measures.get("references.source_entropy")
        rows += [
            {"what": what, "name": what, "bits": level}
            for what, level in levels.items()
            if level is not None
        ]
        if rows:
            of_text = f" of {text}" if len(shown.texts) > 1 else ""
            chart = charts.references(pd.DataFrame(rows), shown.names)
            page.chart(chart, f"Validation text{of_text}, bits per byte (less is better)")


def _notes(page: Page, notes: Sequence[str], variants: int) -> None:
    many = (
        [f"Only the first {MOST_VARIANTS} of {variants} variants are drawn."]
        if variants > MOST_VARIANTS
        else []
    )
    lines = [f'<p class="note">{escape(note)}</p>' for note in [*many, *notes]]
    if len(lines) > MOST_NOTES:
        lines = [
            f"<details><summary>{len(lines)} notes on these runs</summary>",
            *lines,
            "</details>",
        ]
    page.add(*lines)


def _runs(page: Page, runs: Sequence[Run]) -> None:
    if len(runs) < 2:
        return
    keys = {
        BITS: "validation, bits/byte",
        "test.bits_per_byte": "test, bits/byte",
        "parameters": "parameters",
        "tokens_seen": "tokens learned from",
    }
    rows = [
        [run.name, run.diverged.partition(":")[0], *(fixed(run.measures.get(key)) for key in keys)]
        for run in runs
    ]
    head = ["", "", *keys.values()]
    kept = [
        place for place in range(len(head)) if place == 0 or any(row[place] != "" for row in rows)
    ]
    if len(runs) > 12:
        page.add("<details><summary>every run</summary>")
    page.table(
        [head[place] for place in kept], [[row[place] for place in kept] for row in rows], "figures"
    )
    if len(runs) > 12:
        page.add("</details>")


def _sentence(runs: Sequence[Run], shown: Shown) -> str:
    """What was run, on what, and what came out, in words."""
    first = shown.whole[0].runs[0]
    texts = list(shown.texts)
    if len(shown.whole) == 1:
        model = str(first.params.get("train.model", "model")).replace("_", " ")
        rule = str(first.params.get("train.learning_rule", "")).replace("_", " ")
        said = (
            f"A {model} of {first.measures.get('parameters', 0):,.0f} parameters learned by {rule}"
        )
        said += f" from {first.measures.get('tokens_seen', 0):,.0f} tokens of {_described(first)}."
        if len(runs) > 1:
            said += f" {len(runs)} runs differ in nothing but their seeds."
    elif len(texts) == 1:
        said = (
            f"{quantity(len(runs), 'run')} of {quantity(len(shown.whole), 'variant')} on"
            f" {_described(first)}."
        )
    else:
        named = f"{', '.join(texts[:-1])} and {texts[-1]}"
        said = (
            f"{quantity(len(runs), 'run')} of {quantity(len(shown.whole), 'variant')} on"
            f" {len(texts)} texts, {named}."
        )
        said += " What was scored on different texts does not compare."
    broke = [run for run in runs if run.diverged]
    if len(broke) == len(runs) == 1:
        said += f" It {broke[0].diverged}."
    elif broke:
        said += f" {len(broke)} of the {len(runs)} runs diverged."
    return said + "".join(_came_out(text, numbers, shown) for text, numbers in shown.texts.items())


def _came_out(text: str, numbers: Sequence[int], shown: Shown) -> str:
    """What validation cost on one text, and what the references pay there."""
    means = {
        number: mean for number in numbers if (mean := _mean(shown.whole[number], BITS)) is not None
    }
    if not means:
        return ""
    best = shown.whole[min(means, key=means.__getitem__)]
    what = f"Validation text of {text}" if len(shown.texts) > 1 else "Validation text"
    said = f" {what} costs {min(means.values()):.3f} bits per byte"
    if len(shown.whole) > 1:
        said += f" in “{shown.label[best.name]}”"
    if len(best.runs) > 1:
        said += f", mean of {quantity(len(best.runs), 'seed')}"
    if len(means) > 1:
        said += (
            f", the least of {len(means)} variants (the verdicts say what of that is more"
            " than chance)"
        )
    first = shown.whole[numbers[0]].runs[0]
    ngram = first.measures.get("references.validation.kneser_ney")
    if ngram is not None:
        order = first.measures.get("references.kneser_ney_order")
        said += f"; a Kneser-Ney {f'{order:.0f}-gram' if order else 'n-gram'} pays {ngram:.3f}"
    if (entropy := first.measures.get("references.source_entropy")) is not None:
        said += f", and nothing can pay less than {entropy:.3f}"
    return f"{said}."


def _described(run: Run) -> str:
    """The text that a run learned from, with where it comes from if that is known."""
    manifest = _json(run, "data/corpus/manifest.json") or {}
    name = _corpus(run)
    if not manifest or manifest.get("splits", {}).get("validation", {}).get(
        "sha256", ""
    ) != _split_sha256(run):
        return name
    return (
        f"{name} ({manifest.get('source', 'source unknown')};"
        f" {manifest.get('licence', 'no licence given')})"
    )


def _corpus(run: Run) -> str:
    manifest = _json(run, "data/corpus/manifest.json") or {}
    named = (
        _scored_text(run).get("corpus")
        or manifest.get("corpus")
        or run.params.get("download.corpus", "a corpus")
    )
    return str(named).replace("_", " ")


def _scored_text(run: Run) -> dict[str, str]:
    """What the run's results say they are of; the data beside them may be another run's by now.
    Empty in older ones.
    """
    return dict((_json(run, MEASURES) or {}).get("text", {}))


def _texts(variants: Sequence[Variant]) -> dict[str, list[int]]:
    """The validation texts there are, by the names of their corpora, each with the numbers of the
    variants scored on it.

    Texts are told apart by the hash of the split where every variant has one, otherwise by the
    params that made them and their size.
    """
    hashes = [_split_sha256(variant.runs[0]) for variant in variants]
    same: dict[str, list[int]] = {}
    for number, variant in enumerate(variants):
        made = {
            key: value
            for key, value in variant.params.items()
            if key.startswith(("download.", "corpora."))
        }
        sizes = sorted(
            {
                run.measures["validation.bytes"]
                for run in variant.runs
                if "validation.bytes" in run.measures
            }
        )
        by_params = repr((sorted(made.items()), sizes))
        same.setdefault(hashes[number] if all(hashes) else by_params, []).append(number)
    names: dict[str, list[int]] = {}
    for numbers in same.values():
        corpus = _corpus(variants[numbers[0]].runs[0])
        times = sum(name.partition(" #")[0] == corpus for name in names)
        names[f"{corpus} #{times + 1}" if times else corpus] = numbers
    return names


def _split_sha256(run: Run) -> str:
    if told := _scored_text(run).get("sha256"):
        return told
    manifest = _json(run, "data/corpus/manifest.json") or {}
    return str(manifest.get("splits", {}).get("validation", {}).get("sha256", ""))


def _verdicts(page: Page, verdicts: Sequence[Verdict], shown: Shown) -> None:
    """The verdicts on variants that were scored on the baseline's text."""
    if not verdicts:
        return
    label = shown.label
    page.heading(
        "Verdicts",
        f"Against {label.get(verdicts[0].baseline, verdicts[0].baseline)}, paired by seed."
        " Intervals and p by flipping signs"
        " of differences, corrected after Holm for all comparisons made here.",
    )
    elsewhere = [
        shown.whole[number].name for text in list(shown.texts.values())[1:] for number in text
    ]
    if elsewhere:
        named = ", ".join(label[name] for name in elsewhere)
        page.note(f"No verdict on what was scored on another text than the baseline: {named}.")
    kept = [one for one in verdicts if one.variant not in elsewhere]
    reach = {
        measure: _reach(kept, measure) for measure in dict.fromkeys(one.measure for one in kept)
    }
    rows = [
        [
            label.get(one.variant, one.variant),
            one.measure,
            _verdict(one),
            _interval(one, reach[one.measure]),
            signed(one.difference),
            f"{signed(one.low)} to {signed(one.high)}" if math.isfinite(one.low) else "-",
            one.pairs,
            f"{one.corrected:.2g}",
        ]
        for one in kept
    ]
    if rows:
        head = [
            "variant",
            "measure",
            "verdict",
            "",
            "difference",
            "interval",
            "pairs",
            "p, corrected",
        ]
        page.table(head, rows, "verdicts")


def _reach(verdicts: Sequence[Verdict], measure: str) -> float:
    """How far from 0 the pictures of one measure's intervals have to go."""
    of_measure = [one for one in verdicts if one.measure == measure]
    ends = [
        abs(end)
        for one in of_measure
        for end in (one.difference, one.low, one.high)
        if math.isfinite(end)
    ]
    return max(ends, default=0.0)


def _unfair(page: Page, unfair: Mapping[str, Sequence[str]], shown: Shown) -> None:
    """What variants do not have in common with the baseline besides what is compared: each kind
    once, folded away.
    """
    kinds: dict[str, dict[str, list[str]]] = {}
    for name, lines in unfair.items():
        for line in lines:
            kind = line.partition(":")[0].partition(" (")[0]
            detail = line.removeprefix(kind).lstrip(": ")
            kinds.setdefault(kind, {}).setdefault(detail, []).append(shown.label.get(name, name))
    if not kinds:
        return
    count = sum(map(bool, unfair.values()))
    variants = quantity(count, "variant")
    page.add(
        f'<details class="unfair"><summary>Unfair: what {variants} do not have in common with the'
        " baseline</summary>"
    )
    for kind, details in kinds.items():
        rows = [[", ".join(names), detail] for detail, names in details.items()]
        page.add(f"<h3>{escape(kind[0].upper() + kind[1:])}</h3>")
        page.table(["variants", ""], rows)
    page.add("</details>")


def _test(page: Page, runs: Sequence[Run], opened: Sequence[Opening]) -> None:
    """What `lmlab final` has read on the test split for these runs, by their weights."""
    rows = []
    for run in runs:
        weights = (_json(run, MEASURES) or {}).get("weights_sha256")
        rows += [
            [
                run.name,
                one.date[:10],
                fixed(one.bits_per_byte),
                fixed(one.kneser_ney),
                f"{ordinal(one.opened)}",
                one.runs,
            ]
            for one in opened
            if weights and one.weights_sha256 == weights
        ]
    if rows:
        page.heading(
            "Test split",
            "Opened by lmlab final, which counts: the more often, the less it is a test.",
        )
        page.table(
            [
                "",
                "on",
                "test, bits/byte",
                "Kneser-Ney n-gram",
                "opening of this split",
                "runs by then",
            ],
            rows,
        )


def _verdict(one: Verdict) -> Markup:
    first, _, rest = one.sentence.partition(" (")
    more = f' <span class="quiet">({escape(rest)}</span>' if rest else ""
    return Markup(
        f'<strong class="{escape(one.words.replace(" ", "-"))}">{escape(first)}</strong>{more}'
    )


def _interval(one: Verdict, reach: float) -> Markup:
    """A difference and its interval as a small picture; zero is in the middle, and a measure's
    pictures share one scale.
    """
    if not math.isfinite(one.difference) or not reach:
        return Markup("")

    def at(value: float) -> str:
        return f"{80 + 74 * value / reach:.1f}"

    drawn = '<line class="zero" x1="80" x2="80" y1="1" y2="19"/>'
    if math.isfinite(one.low) and math.isfinite(one.high):
        drawn += f'<line class="span" x1="{at(one.low)}" x2="{at(one.high)}" y1="10" y2="10"/>'
    drawn += f'<circle cx="{at(one.difference)}" cy="10" r="4"/>'
    kind = escape(one.words.replace(" ", "-"))
    return Markup(
        f'<svg class="interval {kind}" viewBox="0 0 160 20" width="160" height="20"'
        f' aria-hidden="true">{drawn}</svg>'
    )


def _params(page: Page, shown: Shown) -> None:
    if not shown.variants:
        return
    keys = (
        differing([variant.params for variant in shown.variants]) if len(shown.variants) > 1 else []
    )
    page.heading("Params that differ" if keys else "Params")
    if keys:
        rows = [
            [key, *(str(variant.params.get(key, "")) for variant in shown.variants)] for key in keys
        ]
        page.table(["", *shown.labels], rows)
    used = [mattering(run) for _, run in shown.firsts()]
    rest = [key for key in dict.fromkeys(key for there in used for key in there) if key not in keys]
    page.add(f"<details><summary>{'all others' if keys else 'all'} that mattered</summary>")
    if all(len({repr(there.get(key)) for there in used}) == 1 for key in rest):
        page.table(["", "value"], [[key, str(used[0][key])] for key in rest])
    else:  # seeds, or options of parts that only some use
        page.table(
            ["", *shown.labels],
            [[key, *(str(there.get(key, "")) for there in used)] for key in rest],
        )
    page.add("</details>")


def _curves(page: Page, shown: Shown) -> None:
    tables = []
    in_bits = all(_bits_per_nat(run) is not None for _, run in shown.runs())
    for number, run in shown.runs():
        at = (_json(run, "data/timing/train.json") or {}).get("seconds_at")
        for name, column in (("validation", "validation_nats"), ("training", "train_nats")):
            if (
                name not in run.curves
                or column not in run.curves[name]
                or not len(run.curves[name])
            ):
                continue
            table = thinned(run.curves[name])
            factor = _bits_per_nat(run) if in_bits else None
            table = table.assign(
                variant=number, run=run.name, split=name, loss=table[column] * (factor or 1.0)
            )
            if at and "step" in table:
                table["seconds"] = table["step"].map(
                    dict(zip(at["step"], at["seconds"], strict=True))
                )
            wanted = ["variant", "run", "split", "loss", "tokens", "flops", "seconds", "step"]
            tables.append(table[[key for key in wanted if key in table]])
    if tables and any(np.isfinite(table["loss"]).any() for table in tables):
        whole = pd.concat(tables, ignore_index=True)
        page.heading(
            "Loss",
            "Points: the validation split, in windows side by side, so it ends a little above"
            " what is reported."
            " Thin: training,"
            + (
                " converted with the validation text's bytes per token."
                if in_bits
                else " in nats per token."
            )
            + (" Curves over different texts do not compare." if len(shown.texts) > 1 else ""),
        )
        whole = whole[np.isfinite(whole["loss"])]
        levels = {run.measures.get("references.validation.kneser_ney") for _, run in shown.runs()}
        level = levels.pop() if len(levels) == 1 and in_bits else None
        page.chart(
            charts.curves(
                whole, shown.names, "bits per byte" if in_bits else "nats per token", level
            )
        )
    page.add('<div class="pair">')
    for column, title in (
        ("learning_rate", "learning rate"),
        ("gradient_norm", "gradient norm before clipping"),
    ):
        along = shown.joined("training", column, "step")
        if along is not None:
            kept = along[["variant", "run", "step", column]]
            page.chart(
                charts.along(kept, shown.names, "step", column, ("step", ""), title, 180),
                title.capitalize(),
            )
    page.add("</div>")


def _bits_per_nat(run: Run) -> float | None:
    """What turns nats per token into bits per byte on the validation text of this run."""
    bits, nats = (
        run.measures.get(f"validation.{key}") for key in ("bits_per_byte", "nats_per_token")
    )
    if (
        nats is None and "validation" in run.curves
    ):  # it diverged: what it was validated at until then tells as much
        last = run.curves["validation"].tail(1)
        if {"validation_bits_per_byte", "validation_nats"} <= {*last} and len(last):
            bits, nats = (
                float(last["validation_bits_per_byte"].iloc[0]),
                float(last["validation_nats"].iloc[0]),
            )
    return bits / nats if bits and nats and math.isfinite(bits / nats) else None


SAMPLE = re.compile(r"^## (.+?)\n+~~~~~~text\n(.*?)\n~~~~~~$", re.MULTILINE | re.DOTALL)


def _samples(page: Page, shown: Shown) -> None:
    texts = {
        name: (run.open("results/samples.md") or b"").decode("utf-8", "replace")
        for name, run in shown.firsts()
    }
    blocks = {name: dict(SAMPLE.findall(text)) for name, text in texts.items()}
    prompts = list(dict.fromkeys(prompt for found in blocks.values() for prompt in found))
    if not prompts:
        return
    page.heading(
        "Samples",
        "What the first run of each variant writes."
        if len(shown.variants) > 1
        else "What the model writes.",
    )
    for prompt in prompts:
        page.add(f'<h3>{escape(prompt.replace("`", ""))}</h3><div class="samples" tabindex="0">')
        for number, (name, found) in enumerate(blocks.items()):
            title = (
                f'<p class="who" data-colour="{number}">{escape(name)}</p>'
                if len(blocks) > 1
                else ""
            )
            if prompt in found:
                page.add(f"<div>{title}<pre>{escape(found[prompt])}</pre></div>")
        page.add("</div>")


def _calibration(page: Page, shown: Shown) -> None:
    table = shown.joined("calibration", "confidence", "accuracy", "predictions")
    if table is not None:
        page.heading(
            "Calibration",
            "A model that knows what it knows lies on the dashed line. Large points: many"
            " predictions.",
        )
        page.chart(charts.reliability(table, shown.names))


def _positions(page: Page, shown: Shown) -> None:
    table = shown.joined("loss_by_position", "position", "validation_nats")
    if table is not None:
        page.heading(
            "Loss by position",
            "What a longer context is worth: nats per token at each place of the window.",
        )
        kept = table[["variant", "run", "position", "validation_nats"]]
        what = "loss by position in the window"
        page.chart(
            charts.along(
                kept,
                shown.names,
                "position",
                "validation_nats",
                ("position", "nats per token"),
                what,
            )
        )


def _classes(page: Page, shown: Shown) -> None:
    table = shown.joined("character_classes", "class", "nats_per_byte")
    if table is not None:
        page.heading(
            "Loss by class of character", "A token's cost counts for the class of its first byte."
        )
        numbers = [
            key for key in ("nats_per_byte", "share_of_bytes", "share_of_nats") if key in table
        ]
        means = table.groupby(["class", "variant"], sort=False, as_index=False)[numbers].mean()
        means["bits"] = means["nats_per_byte"] / math.log(2)
        means["class"] = means["class"].str.replace("_", " ")
        page.chart(charts.classes(means, shown.names))


def _probes(page: Page, shown: Shown) -> None:
    tables = []
    for number, run in enumerate(run for _, run in shown.firsts()):
        if content := run.open("data/probes/probes.parquet"):
            table = pd.read_parquet(io.BytesIO(content))
            table["what"] = (table["probe"] + ": " + table["measure"]).str.replace("_", " ")
            tables.append(table.assign(variant=number, run=run.name))
    if not tables or not sum(map(len, tables)):
        return
    page.heading(
        "Inside, over training",
        "What the probes read at each snapshot, at places in the model; those that begin with a"
        " number are in that block.",
    )
    whole = pd.concat(tables, ignore_index=True)
    layered = whole[whole["where"] != "all"].copy()
    bounds = layered.groupby("what", sort=False)["value"].agg(["min", "max"])
    span = bounds["max"] - bounds["min"]
    level = bounds[span <= 1e-4 * bounds.abs().max(axis=1)]  # what differs by rounding alone
    page.add(
        *(
            f'<p class="note">{escape(str(what))} is {as_text(low)} everywhere.</p>'
            for what, low in level["min"].items()
        )
    )
    layered = layered[~layered["what"].isin(level.index)]
    if len(layered):
        layered["shade"] = layered.groupby("what")["value"].transform(_shade)
        layered["where"] = layered["where"].str.removesuffix(".weight").str.removeprefix("blocks.")
        page.add('<div class="choice">')
        for number in _chosen(page, shown, sorted(set(layered["variant"]))):
            own = layered.loc[
                layered["variant"] == number, ["what", "where", "step", "value", "shade"]
            ]
            for kinds in _of_the_same_places(own):
                title = (
                    ", ".join(kinds) if len(kinds) < 4 else f"{kinds[0]} and {len(kinds) - 1} more"
                )
                page.chart(
                    charts.heat_map(own[own["what"].isin(kinds)]), title.capitalize(), broad=True
                )
            page.add("</div>")
        page.add("</div>")
    whole_model = whole[(whole["where"] == "all") & ~whole["what"].isin(level.index)]
    if len(whole_model):
        page.add('<h3>Of the whole model</h3><div class="pair">')
        for what, table in whole_model.groupby("what", sort=False):
            kept = table[["variant", "run", "step", "value"]]
            page.chart(
                charts.along(kept, shown.names, "step", "value", ("step", ""), str(what), 160),
                str(what).capitalize(),
            )
        page.add("</div>")


def _of_the_same_places(table: pd.DataFrame) -> list[list[str]]:
    """The kinds of readings in groups, all of a group from the same places of the model."""
    groups: dict[tuple[str, ...], list[str]] = {}
    for what, rows in table.groupby("what", sort=False):
        groups.setdefault(tuple(dict.fromkeys(rows["where"])), []).append(str(what))
    return list(groups.values())


def _shade(values: pd.Series) -> pd.Series:
    """Readings as 0 to 1, by their logarithms where they are positive and span two orders of
    magnitude.
    """
    if values.min() > 0 and values.max() > 100 * values.min():
        values = np.log(values)
    return ((values - values.min()) / (values.max() - values.min())).round(3)


def _chosen(page: Page, shown: Shown, numbers: Sequence[int]) -> Iterator[int]:
    """Opens a panel for each of these variants, of which the page shows one; the caller closes
    it.
    """
    if len(numbers) > 1:
        options = "".join(
            f'<option value="{number}">{escape(shown.labels[number])}</option>'
            for number in numbers
        )
        page.add(f'<label class="chooser">of <select>{options}</select></label>')
    for place, number in enumerate(numbers):
        page.add(f'<div class="panel" data-panel="{number}"{" hidden" if place else ""}>')
        yield number


def _close_up(page: Page, shown: Shown) -> None:
    found = {
        number: _json(run, "data/probes/close_up.json")
        for number, (_, run) in enumerate(shown.firsts())
    }
    seen = {
        number: pictures for number, pictures in found.items() if pictures and pictures.get("lens")
    }
    if not seen:
        return
    page.heading(
        "A text, read by the model",
        "Above: what each block would say comes next if the model stopped there (the logit lens),"
        " the last block on top;"
        " framed where that came. Below: where each head looks. Spaces are ␣, line ends ⏎. Strong"
        " colours: near 100%.",
    )
    page.add('<div class="choice">')
    for number in _chosen(page, shown, list(seen)):
        page.chart(charts.lens(seen[number]), "Likeliest next token", broad=True)
        if (drawn := charts.heads(seen[number])) is not None:
            page.chart(drawn[0], "All heads, each named by block and head", sides=drawn[1])
            page.chart(charts.attention(seen[number]), "One head", broad=True)
        page.add("</div>")
    page.add("</div>")


def _tokenizers(page: Page, shown: Shown) -> None:
    rows = [
        (name, report)
        for name, run in shown.firsts()
        if (report := _json(run, "data/tokenizer/report.json"))
    ]
    if rows:
        page.heading("Tokenizer", "On the training text.")
        keys = list(
            dict.fromkeys(
                key for _, report in rows for key, v in report.items() if isinstance(v, int | float)
            )
        )
        page.table(
            ["", *(key.replace("_", " ") for key in keys)],
            [[n, *(r.get(key, "") for key in keys)] for n, r in rows],
        )


def _costs(page: Page, shown: Shown) -> None:
    rows = []
    for name, run in shown.firsts():
        timing = {stage: _json(run, f"data/timing/{stage}.json") or {} for stage in TIMED}
        seconds = [timing[stage].get("seconds", "") for stage in TIMED]
        train = timing.get("train", {})
        memory = train["peak_bytes"] / 1e6 if "peak_bytes" in train else ""
        rows.append([name, *seconds, train.get("tokens_per_second", ""), memory])
    head = ["", *(f"{stage}, s" for stage in TIMED), "tokens/s", "peak memory, MB"]
    kept = [
        place for place in range(len(head)) if place == 0 or any(row[place] != "" for row in rows)
    ]
    if len(kept) > 1:
        page.heading(
            "Costs",
            "Of each variant's first run, as measured once, on whatever else the machine was"
            " doing.",
        )
        cells = [[rounded(row[place]) for place in kept] for row in rows]
        page.table([head[place] for place in kept], cells)


def _measures(page: Page, shown: Shown) -> None:
    if not shown.variants:
        return
    keys = list(dict.fromkeys(key for _, run in shown.runs() for key in run.measures))
    page.heading("Every measure")
    page.add("<details><summary>all that was measured; means over seeds</summary>")
    means = [
        [
            key,
            *(
                ("" if (mean := _mean(variant, key)) is None else mean)
                for variant in shown.variants
            ),
        ]
        for key in keys
    ]
    page.table(["", *shown.labels], means)
    page.add("</details>")


# --------------------------------------------------------------------------------------------------
# helpers


def _mean(variant: Variant, key: str) -> float | None:
    """Over the variant's runs; None where one of them has no such number, as those that diverged
    have none.
    """
    values = [run.measures.get(key, math.nan) for run in variant.runs]
    return sum(values) / len(values) if all(map(math.isfinite, values)) else None


def _json(run: Run, path: str) -> Any:
    """What a run's file holds; None where it is not to be had, or is damaged."""
    content = run.open(path)
    try:
        return json.loads(content) if content else None
    except ValueError:
        return None
