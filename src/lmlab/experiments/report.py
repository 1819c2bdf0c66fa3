"""The report: one page, one file, that shows what runs came to and how they differ. It loads nothing from anywhere.

Runs that differ in nothing but seeds share a colour. Whatever a run does not have (probes, a close-up, a table that older
code did not write) is left out without a word.
"""

import io
import json
import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from html import escape
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from lmlab.experiments import charts
from lmlab.experiments import variants as grouping
from lmlab.experiments.page import Markup, Page, as_text, fixed, rounded, signed
from lmlab.experiments.run import Run
from lmlab.experiments.variants import Variant, differing, mattering
from lmlab.experiments.verdicts import Verdict

MOST_VARIANTS = 8
"""That are drawn: as many as there are colours that can be told apart."""
MOST_SEEDS = 5
"""Runs of each variant whose curves are drawn."""
MOST_POINTS = 200
"""Of a run's training curve that are drawn: more cannot be seen."""
TIMED = ("download", "tokenizer", "shard", "train", "evaluate", "probe")
REFERENCES = {"kneser_ney": "Kneser-Ney n-gram", "unigram": "unigram", "uniform": "uniform"}


def thinned(table: pd.DataFrame) -> pd.DataFrame:
    """At most about MOST_POINTS of a table's rows: all of the first, where most happens, some of the others, the last."""
    few = MOST_POINTS // 4
    every = -(-(len(table) - few) // (MOST_POINTS - few))
    return pd.concat([table[:few], table[few:][::-1][::every][::-1]]) if every > 1 else table


@dataclass(frozen=True)
class Shown:
    """What a section is made of: the variants that are drawn, each with a colour and a name."""

    variants: list[Variant]

    @property
    def names(self) -> list[str]:
        return [variant.name for variant in self.variants]

    def runs(self) -> Iterator[tuple[int, Run]]:
        """The runs whose curves are drawn, with the number of their variant."""
        for number, variant in enumerate(self.variants):
            for run in variant.runs[:MOST_SEEDS]:
                yield number, run

    def firsts(self) -> Iterator[tuple[str, Run]]:
        """Each variant's name and first run, for what is shown of one run."""
        for variant in self.variants:
            yield variant.name, variant.runs[0]

    def joined(self, curve: str, *needed: str) -> pd.DataFrame | None:
        """One of the runs' tables, of all that have it with these columns; None where none has."""
        tables = [
            thinned(run.curves[curve]).assign(variant=number, run=run.name)
            for number, run in self.runs()
            if curve in run.curves and len(run.curves[curve]) and {*needed} <= {*run.curves[curve]}
        ]
        return pd.concat(tables, ignore_index=True) if tables else None


def write(runs: Sequence[Run], target: Path, verdicts: Sequence[Verdict] = (), notes: Sequence[str] = ()) -> None:
    """Write the page for these runs, the first of which is what others are held against; `notes` are lines for it."""
    whole = (replace(one, runs=[run for run in one.runs if run.measures]) for one in grouping.group(runs)[0])
    finished = [variant for variant in whole if variant.runs]
    shown = Shown(finished[:MOST_VARIANTS])
    page = Page()
    _lead(page, runs, finished, shown, notes)
    _verdicts(page, verdicts)
    for section in (_params, _curves, _samples, _calibration, _positions, _classes, _probes, _close_up, _tokenizers, _costs):
        section(page, shown)
    _measures(page, shown)
    title = f"Report: {shown.names[0]}" if len(shown.names) == 1 else f"Report: {len(finished)} variants"
    page.write(target, title, shown.names if len(shown.names) > 1 else [])


# ------------------------------------------------------------------------------------------------------------- sections


def _lead(page: Page, runs: Sequence[Run], finished: Sequence[Variant], shown: Shown, notes: Sequence[str]) -> None:
    if shown.variants:
        page.add(f'<p class="lead">{escape(_sentence(runs, finished))}</p>')
        first = shown.variants[0].runs[0]
        split = "validation.bits_per_byte"
        rows = [
            {"what": name, "bits": mean, "variant": number}
            for number, (name, variant) in enumerate(zip(shown.names, shown.variants, strict=True))
            if (mean := _mean(variant, split)) is not None
        ]
        levels = {title: first.measures.get(f"references.validation.{key}") for key, title in REFERENCES.items()}
        levels["entropy of the source"] = first.measures.get("references.source_entropy")
        rows += [{"what": title, "bits": level} for title, level in levels.items() if level is not None]
        if rows:
            page.chart(charts.references(pd.DataFrame(rows), shown.names), "Validation text, bits per byte (less is better)")
    page.add(*(f'<p class="note">{escape(note)}</p>' for note in notes))
    if len(finished) > MOST_VARIANTS:
        page.note(f"Only the first {MOST_VARIANTS} of {len(finished)} variants are drawn.")
    if len(runs) > 1:
        if len(runs) > 12:
            page.add("<details><summary>every run</summary>")
        _runs(page, runs)
        if len(runs) > 12:
            page.add("</details>")


def _runs(page: Page, runs: Sequence[Run]) -> None:
    keys = {
        "validation.bits_per_byte": "validation, bits/byte",
        "test.bits_per_byte": "test, bits/byte",
        "parameters": "parameters",
        "tokens_seen": "tokens learned from",
    }
    rows = [[run.name, *(fixed(run.measures.get(key)) for key in keys), "broke down" if run.broke else ""] for run in runs]
    head = ["", *keys.values(), ""]
    kept = [place for place in range(len(head)) if place == 0 or any(row[place] != "" for row in rows)]
    page.table([head[place] for place in kept], [[row[place] for place in kept] for row in rows], "figures")


def _sentence(runs: Sequence[Run], finished: Sequence[Variant]) -> str:
    """What was run, on what, and what came out, in words."""
    first = finished[0].runs[0]
    manifest = _json(first, "data/corpus/manifest.json") or {}
    on = str(manifest.get("corpus", first.params.get("download.corpus", "a corpus"))).replace("_", " ")
    if manifest:
        on += f" ({manifest.get('source', 'source unknown')}; {manifest.get('licence', 'no licence given')})"
    if len(finished) == 1:
        model = str(first.params.get("train.model", "model")).replace("_", " ")
        rule = str(first.params.get("train.learning_rule", "")).replace("_", " ")
        said = f"A {model} of {first.measures.get('parameters', 0):,.0f} parameters learned by {rule}"
        said += f" from {first.measures.get('tokens_seen', 0):,.0f} tokens of {on}."
        if len(runs) > 1:
            said += f" {len(runs)} runs differ in nothing but their seeds."
    else:
        said = f"{len(runs)} runs of {len(finished)} variants on {on}."
    costs = [(mean, variant) for variant in finished if (mean := _mean(variant, "validation.bits_per_byte")) is not None]
    if costs:
        least, best = min(costs, key=lambda pair: pair[0])
        who = best.name if len(finished) > 1 else "it"
        seeds = f", mean of {len(best.runs)} seeds" if len(best.runs) > 1 else ""
        said += f" Validation text costs {who} {least:.3f} bits per byte{seeds}"
        said += ", the least of all" * (len(costs) > 1)
        ngram = first.measures.get("references.validation.kneser_ney")
        if ngram is not None:
            order = first.measures.get("references.kneser_ney_order")
            said += f"; a Kneser-Ney {f'{order:.0f}-gram' if order else 'n-gram'} pays {ngram:.3f}"
        if (entropy := first.measures.get("references.source_entropy")) is not None:
            said += f", and nothing can pay less than {entropy:.3f}"
        said += "."
    return said


def _verdicts(page: Page, verdicts: Sequence[Verdict]) -> None:
    if not verdicts:
        return
    page.heading(
        "Verdicts",
        f"Against {verdicts[0].baseline}, paired by seed. Intervals and p by flipping signs of differences,"
        " corrected after Holm for all comparisons made here.",
    )
    reach = {
        measure: max(
            [
                abs(v)
                for one in verdicts
                if one.measure == measure
                for v in (one.difference, one.low, one.high)
                if math.isfinite(v)
            ],
            default=0.0,
        )
        for measure in dict.fromkeys(one.measure for one in verdicts)
    }
    rows = [
        [one.variant, one.measure, _verdict(one), _interval(one, reach[one.measure]), signed(one.difference),
         f"{signed(one.low)} to {signed(one.high)}" if math.isfinite(one.low) else "-", one.pairs, f"{one.corrected:.2g}"]
        for one in verdicts
    ]  # fmt: skip
    page.table(["variant", "measure", "verdict", "", "difference", "interval", "pairs", "p, corrected"], rows, "verdicts")


def _verdict(one: Verdict) -> Markup:
    first, _, rest = one.sentence.partition(" (")
    more = f' <span class="quiet">({escape(rest)}</span>' if rest else ""
    return Markup(f'<strong class="{escape(one.words.replace(" ", "-"))}">{escape(first)}</strong>{more}')


def _interval(one: Verdict, reach: float) -> Markup:
    """A difference and its interval as a small picture; zero is in the middle, and a measure's pictures share one scale."""
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
        f'<svg class="interval {kind}" viewBox="0 0 160 20" width="160" height="20" aria-hidden="true">{drawn}</svg>'
    )


def _params(page: Page, shown: Shown) -> None:
    if not shown.variants:
        return
    keys = differing([variant.params for variant in shown.variants]) if len(shown.variants) > 1 else []
    page.heading("Params that differ" if keys else "Params")
    if keys:
        rows = [[key, *(str(variant.params.get(key, "")) for variant in shown.variants)] for key in keys]
        page.table(["", *shown.names], rows)
    used = [mattering(run) for _, run in shown.firsts()]
    rest = [key for key in dict.fromkeys(key for there in used for key in there) if key not in keys]
    page.add(f"<details><summary>{'all others' if keys else 'all'} that mattered</summary>")
    if all(len({repr(there.get(key)) for there in used}) == 1 for key in rest):
        page.table(["", "value"], [[key, str(used[0][key])] for key in rest])
    else:  # seeds, or options of parts that only some use
        page.table(["", *shown.names], [[key, *(str(there.get(key, "")) for there in used)] for key in rest])
    page.add("</details>")


def _curves(page: Page, shown: Shown) -> None:
    tables = []
    in_bits = all(_bits_per_nat(run) is not None for _, run in shown.runs())
    for number, run in shown.runs():
        at = (_json(run, "data/timing/train.json") or {}).get("seconds_at")
        for name, column in (("validation", "validation_nats"), ("training", "train_nats")):
            if name not in run.curves or column not in run.curves[name]:
                continue
            table = thinned(run.curves[name])
            factor = _bits_per_nat(run) if in_bits else None
            table = table.assign(variant=number, run=run.name, split=name, loss=table[column] * (factor or 1.0))
            if at and "step" in table:
                table["seconds"] = table["step"].map(dict(zip(at["step"], at["seconds"], strict=True)))
            wanted = ["variant", "run", "split", "loss", "tokens", "operations", "seconds", "step"]
            tables.append(table[[key for key in wanted if key in table]])
    if tables and any(np.isfinite(table["loss"]).any() for table in tables):
        whole = pd.concat(tables, ignore_index=True)
        page.heading(
            "Loss",
            "Points: the validation split, in windows side by side, so it ends a little above what is reported."
            " Thin: training,"
            + (" converted with the validation text's bytes per token." if in_bits else " in nats per token."),
        )
        whole = whole[np.isfinite(whole["loss"])]
        levels = {run.measures.get("references.validation.kneser_ney") for _, run in shown.runs()}
        level = levels.pop() if len(levels) == 1 and in_bits else None
        page.chart(charts.curves(whole, shown.names, "bits per byte" if in_bits else "nats per token", level))
    page.add('<div class="pair">')
    for column, title in (("learning_rate", "learning rate"), ("gradient_norm", "gradient norm before clipping")):
        along = shown.joined("training", column, "step")
        if along is not None:
            kept = along[["variant", "run", "step", column]]
            page.chart(charts.along(kept, shown.names, "step", column, ("step", ""), title, 180), title.capitalize())
    page.add("</div>")


def _bits_per_nat(run: Run) -> float | None:
    """What turns nats per token into bits per byte on the validation text of this run."""
    bits, nats = (run.measures.get(f"validation.{key}") for key in ("bits_per_byte", "nats_per_token"))
    return bits / nats if bits and nats and math.isfinite(bits / nats) else None


SAMPLE = re.compile(r"^## (.+?)\n+~~~~~~text\n(.*?)\n~~~~~~$", re.MULTILINE | re.DOTALL)


def _samples(page: Page, shown: Shown) -> None:
    texts = {name: (run.open("results/samples.md") or b"").decode("utf-8", "replace") for name, run in shown.firsts()}
    blocks = {name: dict(SAMPLE.findall(text)) for name, text in texts.items()}
    prompts = list(dict.fromkeys(prompt for found in blocks.values() for prompt in found))
    if not prompts:
        return
    page.heading(
        "Samples", "What the first run of each variant writes." if len(shown.variants) > 1 else "What the model writes."
    )
    for prompt in prompts:
        page.add(f'<h3>{escape(prompt.replace("`", ""))}</h3><div class="samples" tabindex="0">')
        for number, (name, found) in enumerate(blocks.items()):
            title = f'<p class="who" data-colour="{number}">{escape(name)}</p>' if len(blocks) > 1 else ""
            if prompt in found:
                page.add(f"<div>{title}<pre>{escape(found[prompt])}</pre></div>")
        page.add("</div>")


def _calibration(page: Page, shown: Shown) -> None:
    table = shown.joined("calibration", "confidence", "accuracy", "predictions")
    if table is not None:
        page.heading(
            "Calibration", "A model that knows what it knows lies on the dashed line. Large points: many predictions."
        )
        page.chart(charts.reliability(table, shown.names))


def _positions(page: Page, shown: Shown) -> None:
    table = shown.joined("loss_by_position", "position", "validation_nats")
    if table is not None:
        page.heading("Loss by position", "What a longer context is worth: nats per token at each place of the window.")
        kept = table[["variant", "run", "position", "validation_nats"]]
        what = "loss by position in the window"
        page.chart(charts.along(kept, shown.names, "position", "validation_nats", ("position", "nats per token"), what))


def _classes(page: Page, shown: Shown) -> None:
    table = shown.joined("character_classes", "class", "nats_per_byte")
    if table is not None:
        page.heading("Loss by class of character", "A token's cost counts for the class of its first byte.")
        numbers = [key for key in ("nats_per_byte", "share_of_bytes", "share_of_nats") if key in table]
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
        "What the probes read at each snapshot, at places in the model; those that begin with a number are in that block.",
    )
    whole = pd.concat(tables, ignore_index=True)
    layered = whole[whole["where"] != "all"].copy()
    bounds = layered.groupby("what", sort=False)["value"].agg(["min", "max"])
    span = bounds["max"] - bounds["min"]
    level = bounds[span <= 1e-4 * bounds.abs().max(axis=1)]  # what differs by rounding alone
    page.add(
        *(f'<p class="note">{escape(str(what))} is {as_text(low)} everywhere.</p>' for what, low in level["min"].items())
    )
    layered = layered[~layered["what"].isin(level.index)]
    if len(layered):
        layered["shade"] = layered.groupby("what")["value"].transform(_shade)
        layered["where"] = layered["where"].str.removesuffix(".weight").str.removeprefix("blocks.")
        page.add('<div class="choice">')
        for number in _chosen(page, shown, sorted(set(layered["variant"]))):
            own = layered.loc[layered["variant"] == number, ["what", "where", "step", "value", "shade"]]
            for kinds in _of_the_same_places(own):
                title = ", ".join(kinds) if len(kinds) < 4 else f"{kinds[0]} and {len(kinds) - 1} more"
                page.chart(charts.heat_map(own[own["what"].isin(kinds)]), title.capitalize(), broad=True)
            page.add("</div>")
        page.add("</div>")
    whole_model = whole[(whole["where"] == "all") & ~whole["what"].isin(level.index)]
    if len(whole_model):
        page.add('<h3>Of the whole model</h3><div class="pair">')
        for what, table in whole_model.groupby("what", sort=False):
            kept = table[["variant", "run", "step", "value"]]
            page.chart(
                charts.along(kept, shown.names, "step", "value", ("step", ""), str(what), 160), str(what).capitalize()
            )
        page.add("</div>")


def _of_the_same_places(table: pd.DataFrame) -> list[list[str]]:
    """The kinds of readings in groups, all of a group from the same places of the model."""
    groups: dict[tuple[str, ...], list[str]] = {}
    for what, rows in table.groupby("what", sort=False):
        groups.setdefault(tuple(dict.fromkeys(rows["where"])), []).append(str(what))
    return list(groups.values())


def _shade(values: pd.Series) -> pd.Series:
    """Readings as 0 to 1, by their logarithms where they are positive and span two orders of magnitude."""
    if values.min() > 0 and values.max() > 100 * values.min():
        values = np.log(values)
    return ((values - values.min()) / (values.max() - values.min())).round(3)


def _chosen(page: Page, shown: Shown, numbers: Sequence[int]) -> Iterator[int]:
    """Opens a panel for each of these variants, of which the page shows one; the caller closes it."""
    if len(numbers) > 1:
        options = "".join(f'<option value="{number}">{escape(shown.names[number])}</option>' for number in numbers)
        page.add(f'<label class="chooser">of <select>{options}</select></label>')
    for place, number in enumerate(numbers):
        page.add(f'<div class="panel" data-panel="{number}"{" hidden" if place else ""}>')
        yield number


def _close_up(page: Page, shown: Shown) -> None:
    found = {number: _json(run, "data/probes/close_up.json") for number, (_, run) in enumerate(shown.firsts())}
    seen = {number: pictures for number, pictures in found.items() if pictures and pictures.get("lens")}
    if not seen:
        return
    page.heading(
        "A text, read by the model",
        "Above: what each block would say comes next if the model stopped there (the logit lens), the last block on top;"
        " framed where that came. Below: where each head looks. Spaces are ␣, line ends ⏎. Strong colours: near 100%.",
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
    rows = [(name, report) for name, run in shown.firsts() if (report := _json(run, "data/tokenizer/report.json"))]
    if rows:
        page.heading("Tokenizer", "On the training text.")
        keys = list(dict.fromkeys(key for _, report in rows for key, v in report.items() if isinstance(v, int | float)))
        page.table(["", *(key.replace("_", " ") for key in keys)], [[n, *(r.get(key, "") for key in keys)] for n, r in rows])


def _costs(page: Page, shown: Shown) -> None:
    rows = []
    for name, run in shown.firsts():
        timing = {stage: _json(run, f"data/timing/{stage}.json") or {} for stage in TIMED}
        seconds = [timing[stage].get("seconds", "") for stage in TIMED]
        train = timing.get("train", {})
        memory = train["peak_bytes"] / 1e6 if "peak_bytes" in train else ""
        rows.append([name, *seconds, train.get("tokens_per_second", ""), memory])
    head = ["", *(f"{stage}, s" for stage in TIMED), "tokens/s", "peak memory, MB"]
    kept = [place for place in range(len(head)) if place == 0 or any(row[place] != "" for row in rows)]
    if len(kept) > 1:
        page.heading("Costs", "Of each variant's first run, as measured once, on whatever else the machine was doing.")
        cells = [[rounded(row[place]) for place in kept] for row in rows]
        page.table([head[place] for place in kept], cells)


def _measures(page: Page, shown: Shown) -> None:
    if not shown.variants:
        return
    keys = list(dict.fromkeys(key for _, run in shown.runs() for key in run.measures))
    page.heading("Every measure")
    page.add("<details><summary>all that was measured; means over seeds</summary>")
    means = [[key, *(("" if (mean := _mean(variant, key)) is None else mean) for variant in shown.variants)] for key in keys]
    page.table(["", *shown.names], means)
    page.add("</details>")


# -------------------------------------------------------------------------------------------------------------- helpers


def _mean(variant: Variant, key: str) -> float | None:
    values = [run.measures[key] for run in variant.runs if key in run.measures and math.isfinite(run.measures[key])]
    return sum(values) / len(values) if values else None


def _json(run: Run, path: str) -> Any:
    """What a run's file holds; None where it is not to be had, or is damaged."""
    content = run.open(path)
    try:
        return json.loads(content) if content else None
    except ValueError:
        return None
