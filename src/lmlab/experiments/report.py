"""The report: one page, one file, that shows what runs came to and how they differ. It loads nothing from anywhere.

Whatever a run does not have (probes, a close-up, a table that older code did not write) is left out without a word.
"""

import html
import io
import json
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd
import vl_convert

from lmlab.experiments import charts
from lmlab.experiments.run import Run
from lmlab.experiments.variants import differing, mattering
from lmlab.experiments.verdicts import Verdict
from lmlab.files import whole_file

TEMPLATE = Path(__file__).with_name("page.html")
MOST_RUNS = 8
"""That curves and samples are drawn of: as many as there are colours that can be told apart."""
REFERENCES = {
    "kneser_ney": "Kneser-Ney n-gram",
    "unigram": "unigram",
    "uniform": "uniform",
    "source_entropy": "entropy of the source",
}

escape = partial(html.escape, quote=True)


class _Page:
    """HTML, and the charts that its boxes stand for."""

    def __init__(self) -> None:
        self.parts: list[str] = []
        self.charts: dict[str, charts.Spec] = {}

    def add(self, *parts: str) -> None:
        self.parts += parts

    def heading(self, title: str, note: str = "") -> None:
        self.add(f"<h2>{escape(title)}</h2>")
        if note:
            self.add(f'<p class="note">{escape(note)}</p>')

    def chart(self, spec: charts.Spec, what: str, broad: bool = False) -> None:
        """`what` says in words what is seen, for those who do not see it; `broad` ones scroll on small screens."""
        name = f"chart-{len(self.charts)}"
        self.charts[name] = spec
        kind = "chart broad" if broad else "chart"
        self.add(f'<div class="{kind}" role="img" aria-label="{escape(what)}"><div id="{name}"></div></div>')

    def table(self, head: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
        """The first column names the rows; numbers stand to the right."""
        numeric = [bool(rows) and all(_is_number(row[place]) for row in rows) for place in range(len(head))]
        kind = [' class="number"' if number else "" for number in numeric]
        self.add('<div class="wide"><table><thead><tr>')
        self.add(*(f'<th scope="col"{k}>{escape(title)}</th>' for title, k in zip(head, kind, strict=True)))
        self.add("</tr></thead><tbody>")
        for row in rows:
            self.add("<tr>", *(f"<td{k}>{escape(_shown(cell))}</td>" for cell, k in zip(row, kind, strict=True)), "</tr>")
        self.add("</tbody></table></div>")


def write(runs: Sequence[Run], target: Path, verdicts: Sequence[Verdict] = (), notes: Sequence[str] = ()) -> None:
    """Write the page for these runs, the first of which is the one that others are held against; `notes` are lines of it."""
    finished = [run for run in runs if run.measures]
    drawn = finished[:MOST_RUNS]
    page = _Page()
    _lead(page, runs, finished, notes)
    _verdicts(page, verdicts)
    for section in (_curves, _params, _samples, _calibration, _positions, _classes, _tokenizers, _probes, _close_up, _costs):
        section(page, drawn)
    title = "Report: " + (drawn[0].name if len(drawn) == 1 else f"{len(runs)} runs") if drawn else "Report"
    text = TEMPLATE.read_text(encoding="utf-8")
    pieces = {
        "title": escape(title),
        "body": "\n".join(page.parts),
        "charts": json.dumps(page.charts, ensure_ascii=False, allow_nan=False).replace("<", "\\u003c"),
        "library": vl_convert.javascript_bundle().replace("</script", "<\\/script"),  # type: ignore[call-arg]
    }
    head, *rest = text.split("{{")
    for piece in rest:  # once each, so that nothing in a run is taken for a place to fill
        name, _, after = piece.partition("}}")
        head += pieces[name] + after
    with whole_file(target) as partial_file:
        partial_file.write_text(head, encoding="utf-8")


# ------------------------------------------------------------------------------------------------------------- sections


def _lead(page: _Page, runs: Sequence[Run], finished: Sequence[Run], notes: Sequence[str]) -> None:
    if len(finished) == 1:
        page.add(f'<p class="lead">{escape(_sentence(finished[0]))}</p>')
    rows = []
    for run in runs:
        costs = [run.measures.get(f"{split}.bits_per_byte", "") for split in ("validation", "test")]
        size = [run.measures.get(key, "") for key in ("parameters", "tokens_seen")]
        rows.append([run.name, *costs, *size, "broke down" if run.broke else ""])
    if finished:
        for key, title in REFERENCES.items():
            costs = [finished[0].measures.get(f"references.{split}.{key}", "") for split in ("validation", "test")]
            if key == "source_entropy":
                costs = [finished[0].measures.get("references.source_entropy", "")] * 2
            if any(cost != "" for cost in costs):
                rows.append([title, *costs, "", "", ""])
    head = ["", "validation, bits/byte", "test, bits/byte", "parameters", "tokens learned from", ""]
    kept = [place for place in range(len(head)) if place == 0 or any(row[place] != "" for row in rows)]
    page.table([head[place] for place in kept], [[row[place] for place in kept] for row in rows])
    page.add(*(f'<p class="note">{escape(note)}</p>' for note in notes))
    if len(finished) > MOST_RUNS:
        page.add(f'<p class="note">Curves and samples below are of the first {MOST_RUNS} runs.</p>')


def _sentence(run: Run) -> str:
    manifest = _json(run, "data/corpus/manifest.json")
    said = f"A {run.params.get('train.model', 'model')} of {_shown(int(run.measures.get('parameters', 0)))} parameters"
    said += f" learned by {str(run.params.get('train.learning_rule', '')).replace('_', ' ')}"
    said += f" from {_shown(int(run.measures.get('tokens_seen', 0)))} tokens"
    if manifest:
        licence = manifest.get("licence", "no licence given")
        said += f" of {manifest['corpus'].replace('_', ' ')} ({manifest['source']}; {licence})"
    cost, ngram = run.measures.get("validation.bits_per_byte"), run.measures.get("references.validation.kneser_ney")
    if cost is not None:
        said += f". Validation text costs it {cost:.3f} bits per byte"
        if ngram is not None:
            side = "more" if cost > ngram else "less"
            said += f", {abs(cost - ngram):.3f} {side} than a Kneser-Ney n-gram"
    return said + "."


def _verdicts(page: _Page, verdicts: Sequence[Verdict]) -> None:
    if not verdicts:
        return
    page.heading(
        "Verdicts",
        f"Against {verdicts[0].baseline}, paired by seed. Intervals and p by flipping signs, corrected after Holm.",
    )
    page.add("<ul>")
    for one in verdicts:
        page.add(f"<li>{escape(one.variant)}, {escape(one.measure)}: <strong>{escape(one.sentence)}</strong></li>")
    page.add("</ul>")
    rows = [
        {
            "variant": one.variant, "measure": one.measure, "difference": one.difference, "low": _finite(one.low),
            "high": _finite(one.high), "verdict": one.words,
        }
        for one in verdicts
        if _finite(one.difference) is not None
    ]  # fmt: skip
    if rows:
        page.chart(charts.intervals(pd.DataFrame(rows)), "differences from the baseline with intervals")
    head = ["variant", "measure", "pairs", "baseline", "variant's", "difference", "from", "to", "p", "corrected", "effect"]
    cells = [
        [one.variant, one.measure, one.pairs, one.baseline_mean, one.variant_mean, one.difference, one.low, one.high, one.p,
         one.corrected, one.effect]
        for one in verdicts
    ]  # fmt: skip
    page.add("<details><summary>in numbers</summary>")
    page.table(head, cells)
    page.add("</details>")


def _curves(page: _Page, runs: Sequence[Run]) -> None:
    tables = []
    for run in runs:
        for split, name, column in (("validation", "validation", "validation_nats"), ("training", "training", "train_nats")):
            if name in run.curves and column in run.curves[name]:
                table = run.curves[name].rename(columns={column: "nats"}).assign(run=run.name, split=split)
                at = (_json(run, "data/timing/train.json") or {}).get("seconds_at")
                if at:
                    table["seconds"] = table["step"].map(dict(zip(at["step"], at["seconds"], strict=True)))
                wanted = ["run", "split", "nats", "tokens", "operations", "seconds"]
                tables.append(table[[key for key in wanted if key in table]].replace([float("inf")], float("nan")))
    if tables:
        page.heading("Loss", "Validation with points, training dashed. Validation without overlapping windows.")
        whole = pd.concat(tables, ignore_index=True)
        whole = whole[whole["nats"].notna()]
        if {"tokens", "operations"} & set(whole):
            page.chart(charts.curves(whole, _names(runs)), "loss along training, by run")


def _params(page: _Page, runs: Sequence[Run]) -> None:
    used = [mattering(run) for run in runs]
    keys = differing(used) if len(runs) > 1 else []
    if keys:
        page.heading("Params that differ")
        page.table(["", *_names(runs)], [[key, *(str(there.get(key, "")) for there in used)] for key in keys])
    elif runs:
        page.heading("Params")
    if runs:
        page.add(f"<details><summary>all that mattered for {escape(runs[0].name)}</summary>")
        page.table(["param", "value"], [[key, str(value)] for key, value in used[0].items()])
        page.add("</details>")


def _samples(page: _Page, runs: Sequence[Run]) -> None:
    texts = {run.name: (run.open("results/samples.md") or b"").decode("utf-8", "replace").split("~~~~~~") for run in runs}
    there = {name: [block.removeprefix("text\n").strip() for block in blocks[1::2]] for name, blocks in texts.items()}
    there = {name: blocks for name, blocks in there.items() if blocks}
    if there:
        page.heading("Samples", "What the models write.")
        page.add('<div class="samples">')
        for name, blocks in there.items():
            for number, block in enumerate(blocks[:1] if len(there) > 1 else blocks[:2]):
                title = name if len(there) > 1 else f"sample {number + 1}"
                page.add(f"<div><h3>{escape(title)}</h3><pre>{escape(block)}</pre></div>")
        page.add("</div>")


def _calibration(page: _Page, runs: Sequence[Run]) -> None:
    if table := _joined(runs, "calibration"):
        page.heading("Calibration", "A model that knows what it knows lies on the dashed line.")
        page.chart(charts.reliability(pd.concat(table), _names(runs)), "accuracy by confidence")


def _positions(page: _Page, runs: Sequence[Run]) -> None:
    if table := _joined(runs, "loss_by_position"):
        page.heading("Loss by position", "How much a longer context helps: nats per token at each place of the window.")
        titles = ("tokens read before, and this one", "nats per token")
        page.chart(charts.along(pd.concat(table), _names(runs), "position", "validation_nats", titles), "loss by position")


def _classes(page: _Page, runs: Sequence[Run]) -> None:
    if table := _joined(runs, "character_classes"):
        page.heading("Loss by class of character", "A token's cost counts for the class of its first byte.")
        whole = pd.concat(table)
        whole["class"] = whole["class"].str.replace("_", " ")
        page.chart(charts.bars(whole, _names(runs), "class", "nats_per_byte", "nats per byte"), "loss by class of character")


def _tokenizers(page: _Page, runs: Sequence[Run]) -> None:
    reports = {run.name: _json(run, "data/tokenizer/report.json") for run in runs}
    rows = [(name, report) for name, report in reports.items() if report]
    if rows:
        page.heading("Tokenizer", "On the training text.")
        keys = [key for key, value in rows[0][1].items() if isinstance(value, int | float)]
        page.table(["", *(key.replace("_", " ") for key in keys)], [[n, *(r.get(key, "") for key in keys)] for n, r in rows])


def _probes(page: _Page, runs: Sequence[Run]) -> None:
    tables = []
    for run in runs:
        if content := run.open("data/probes/probes.parquet"):
            table = pd.read_parquet(io.BytesIO(content))
            table["what"] = table["probe"].str.replace("_", " ") + ": " + table["measure"].str.replace("_", " ")
            table["where"] = table["where"].str.removesuffix(".weight")
            table["value"] = table["value"].map(lambda value: float(f"{value:.4g}"))
            tables.append(table[["what", "where", "step", "value"]].assign(run=run.name))
    if tables:
        page.heading(
            "Inside, over training", "What the probes read at each snapshot (columns) and place in the model (rows)."
        )
        whole = pd.concat(tables, ignore_index=True)
        page.chart(
            charts.heat_map(whole, list(dict.fromkeys(whole["run"]))), "readings of probes by place and step", broad=True
        )


def _close_up(page: _Page, runs: Sequence[Run]) -> None:
    seen = [(run, found) for run in runs if (found := _json(run, "data/probes/close_up.json")) and found["lens"]]
    if not seen:
        return
    page.heading("A text, read by the model", "Spaces are ␣, line ends ⏎.")
    for run, pictures in seen:
        if len(seen) > 1:
            page.add(f"<h3>{escape(run.name)}</h3>")
        page.add("<p class='note'>What each block would say comes next if the model stopped there (the logit lens).</p>")
        page.chart(charts.lens(pictures), "the likeliest next token behind each block", broad=True)
        if (spec := charts.attention(pictures)) is not None:
            page.add("<p class='note'>Where a head looks, from each token (rows) to those before (columns).</p>")
            page.chart(spec, "attention by token", broad=True)


def _costs(page: _Page, runs: Sequence[Run]) -> None:
    rows = []
    for run in runs:
        timing = _json(run, "data/timing/train.json") or {}
        keys = ("training_seconds", "validation_seconds", "tokens_per_second", "peak_bytes")
        if any(key in timing for key in keys):
            rows.append([run.name, *(float(timing[key]) if key in timing else "" for key in keys)])
    if rows:
        page.heading("Cost of training", "As it was measured once, on whatever else the machine was doing.")
        page.table(["", "training, s", "validation, s", "tokens/s", "peak memory, bytes"], rows)


# -------------------------------------------------------------------------------------------------------------- helpers


def _joined(runs: Sequence[Run], curve: str) -> list[pd.DataFrame]:
    return [run.curves[curve].assign(run=run.name) for run in runs if curve in run.curves and len(run.curves[curve])]


def _names(runs: Sequence[Run]) -> list[str]:
    return [run.name for run in runs]


def _json(run: Run, path: str) -> Any:
    """What a run's file holds; None where it is not to be had, or is damaged."""
    content = run.open(path)
    try:
        return json.loads(content) if content else None
    except ValueError:
        return None


def _finite(value: float) -> float | None:
    return value if value == value and abs(value) != float("inf") else None


def _is_number(cell: Any) -> bool:
    return cell == "" or (isinstance(cell, int | float) and not isinstance(cell, bool))


def _shown(cell: Any) -> str:
    if isinstance(cell, bool) or not isinstance(cell, int | float):
        return str(cell)
    if cell != cell:
        return "-"
    if float(cell).is_integer() or abs(cell) >= 10_000:
        return f"{cell:,.0f}"
    return f"{cell:.4g}"
