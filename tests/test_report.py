"""The report: what is on the page, that nothing of a run gets out of its place, and what a browser
makes of it.
"""

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import browser
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lmlab.experiments.compare import variants as grouping
from lmlab.experiments.compare import verdicts
from lmlab.experiments.compare.labels import LONGEST, labels
from lmlab.experiments.compare.run import Run
from lmlab.experiments.compare.variants import Variant
from lmlab.experiments.drawing.svg import Picture
from lmlab.experiments.openings import Opening
from lmlab.experiments.report import charts, report
from lmlab.experiments.report.page import library
from lmlab.experiments.report.shown import MOST_VARIANTS

SVG = "{http://www.w3.org/2000/svg}"
NASTY = "</script><script>document.title = 'taken over'</script>{{body}} & <b>"


MODEL = {
    "model": {"name": "transformer", "options": {"tied": False}, "inner": {}},
    "vocabulary_size": 10,
    "context": 16,
    "parameters": 6312,
    "precision": "float32",
    "size": {"width": 8, "blocks": 2, "batch": 4, "forward_flops_per_token": 1000},
}


def files(seed: int) -> dict[str, bytes]:
    readings = [
        {
            "step": step,
            "tokens": step * 8,
            "probe": "spectra",
            "measure": "stable_rank",
            "where": where,
            "value": step + 0.5 * len(where),
        }
        for step in (0, 4)
        for where in ("blocks.0.up.weight", "blocks.1.up.weight", "all")
    ]
    close_up = {
        "tokens": ["start", "a", "␣"],
        "attention": [[[[1.0, 0.0, 0.0], [0.5, 0.5, 0.0], [0.2, 0.3, 0.5]]], []],
        "lens": [[["a", "b", "a"], [0.5, 0.6, 0.7]], [["b", "␣", "start"], [0.1, 0.9, 0.3]]],
    }
    log = [{"step": 2, "train_nats": 3.0}] + [
        {"step": step, "sample": f"after {step} steps {NASTY}"} for step in (2, 4)
    ]
    heldout = {
        "split": "validation",
        "pieces": [
            ["a", 0.01, [["a", 0.99], ["<b>", 0.01]]],
            ["\n", 9.0, [[None, 0.5], ["a", 0.25]]],
            ["", None, []],
            ["<", 1.0, [["<", 0.37]]],
        ],
    }
    return {
        "data/model/model.json": json.dumps(MODEL).encode(),
        "data/training/log.jsonl": "".join(json.dumps(row) + "\n" for row in log).encode(),
        "data/probes/about.json": json.dumps(
            {"spectra": f"How spectra are read. {NASTY}"}
        ).encode(),
        "results/heldout.json": json.dumps(heldout).encode(),
        "results/samples.md": f"# Samples\n\n## After `O`\n\n~~~~~~text\nsample {seed}"
        f" {NASTY}\n~~~~~~\n".encode(),
        "data/corpus/manifest.json": json.dumps(
            {"corpus": "plays", "source": "a shelf", "licence": "free"}
        ).encode(),
        "data/tokenizer/report.json": json.dumps(
            {"vocabulary_size": 65, "bytes_per_token": 1.5}
        ).encode(),
        "data/timing/train.json": json.dumps(
            {
                "seconds": 1.5,
                "training_seconds": 1.25,
                "seconds_at": {"step": [2, 4], "seconds": [0.5, 1.0]},
            }
        ).encode(),
        "data/probes/probes.parquet": pd.DataFrame(readings).to_parquet(),
        "data/probes/close_up.json": json.dumps(close_up).encode(),
        **pictures(),
    }


def run(seed: int = 0, rate: float = 0.1, name: str = "") -> Run:
    steps = {"step": [2, 4], "tokens": [16, 32], "flops": [1e6, 2e6]}
    curves = {
        "training": pd.DataFrame(
            {
                **steps,
                "train_nats": [3.0, 2.0 + seed],
                "learning_rate": [0.1, 0.2],
                "gradient_norm": [1.0, 2.0],
            }
        ),
        "validation": pd.DataFrame({**steps, "validation_nats": [3.1, 2.2 + seed]}),
        "calibration": pd.DataFrame(
            {"confidence": [0.2, 0.8], "accuracy": [0.1, 0.9], "predictions": [5, 6]}
        ),
        "loss_by_position": pd.DataFrame({"position": [1, 2], "validation_nats": [3.0, 2.0]}),
        "character_classes": pd.DataFrame(
            {"class": ["space", "capital"], "nats_per_byte": [0.5, 2.5]}
        ),
    }
    measures = {
        "validation.bits_per_byte": 2.5 + seed / 10,
        "parameters": 1234.0,
        "tokens_seen": 32.0,
        "references.validation.kneser_ney": 2.25,
    }
    params = {
        "train.model": "transformer",
        "train.learning_rule": "backprop",
        "train.seed": seed,
        "train.batch": rate,
    }
    return Run(name or f"run {seed}", params, measures, curves, files(seed).get)


def body(page: Path) -> str:
    """What is read on it, without the drawing library and the charts' data."""
    return page.read_text(encoding="utf-8").split("<body>")[1].split("<script>")[0]


def headings(text: str) -> list[str]:
    return re.findall(r"<h2[^>]*>(.*?)</h2>", text)


def without_library(page: Path) -> str:
    text = page.read_text(encoding="utf-8")
    assert library() in text
    return text.replace(library(), "")


def drawn(page: Path) -> dict[str, Any]:
    text = page.read_text(encoding="utf-8")
    found = re.search(r'<script type="application/json" id="charts">(.*?)</script>', text, re.S)
    assert found
    charts: dict[str, Any] = json.loads(found[1])
    return charts


def test_one_run_is_told_in_a_sentence_with_its_references_beside_it(tmp_path: Path) -> None:
    report.write([run()], tmp_path / "page.html")
    text = body(tmp_path / "page.html")
    for piece in (
        "1,234 parameters",
        "plays (a shelf; free)",
        "2.500 bits per byte",
        "a Kneser-Ney n-gram model scores 2.250",
    ):
        assert piece in text, piece
    assert headings(text) == [
        "Params",
        "Model",
        "Learning rule",
        "Loss",
        "Samples during training",
        "Held-out text",
        "Samples",
        "Calibration",
        "Loss by position",
        "Loss by class of character",
        "Inside the model",
        "A text read by the model",
        "Tokenizer",
        "Costs",
        "Every measure",
    ]
    assert len(drawn(tmp_path / "page.html")) == len(re.findall(r'id="chart-\d+"', text)) == 12


def test_what_a_run_lacks_is_left_out(tmp_path: Path) -> None:
    bare = Run("bare", {"train.seed": 0}, {"validation.bits_per_byte": 3.0})
    report.write([bare], tmp_path / "page.html")
    assert headings(body(tmp_path / "page.html")) == ["Params", "Every measure"]
    assert len(drawn(tmp_path / "page.html")) == 1  # its cost
    blocks_without_heads = {
        "tokens": ["start"],
        "attention": [[], []],
        "lens": [[["a"], [0.5]], [["b"], [0.5]]],
    }
    lstm = Run(
        "lstm",
        {},
        {"parameters": 1.0},
        open={"data/probes/close_up.json": json.dumps(blocks_without_heads).encode()}.get,
    )
    report.write([lstm], tmp_path / "page.html")
    assert len(drawn(tmp_path / "page.html")) == 1


def pictures(of_model: str = "the model") -> dict[str, bytes]:
    """The file with the pictures of a run."""
    drawn = {}
    for name, text in (("model", of_model), ("rule", "a rule")):
        picture = Picture(description=f"{text} {NASTY}", width=100)
        picture.box(0, 0, 50, 30, text, NASTY)
        picture.arrow("M0 30V60", "true")
        drawn[name] = picture.model_dump()
    return {"data/probes/pictures.json": json.dumps(drawn).encode()}


def test_the_pictures_of_model_and_rule_are_drawn_with_ids_of_their_own(tmp_path: Path) -> None:
    report.write([run()], tmp_path / "page.html")
    page = body(tmp_path / "page.html")
    for heading, text in (("model", "the model"), ("learning-rule", "a rule")):
        section = page.split(f'id="{heading}"')[1].split("</section>")[0]
        svg = section[section.index("<svg") : section.index("</svg>") + len("</svg>")]
        root = ElementTree.fromstring(svg)  # so all that is written in it is escaped
        assert [each.text for each in root.iter(f"{SVG}text")] == [text, NASTY]
        assert next(root.iter(f"{SVG}title")).text == f"{text} {NASTY}"
    ids = re.findall(r'<(?:marker|title) id="(.*?)"', page)
    assert len(ids) == len(set(ids)) == 8
    assert set(re.findall(r"url\(#(.*?)\)", page)) <= set(ids)
    assert "6,312" in page


@pytest.mark.parametrize("content", [b"{}", b"not JSON", b'{"model": {"shapes": 1}, "rule": 2}'])
def test_pictures_of_other_code_are_left_out(tmp_path: Path, content: bytes) -> None:
    opened = files(0) | {"data/probes/pictures.json": content}
    report.write([replace(run(), open=opened.get)], tmp_path / "page.html")
    page = body(tmp_path / "page.html")
    assert "<svg" not in page
    assert "Learning rule" not in headings(page)
    assert "6,312" in page


@pytest.mark.parametrize("record", [b"{}", b"not JSON", b'{"model": {"name": "lstm"}}'])
def test_a_record_of_older_code_gives_no_sizes(tmp_path: Path, record: bytes) -> None:
    opened = files(0) | {"data/model/model.json": record}
    report.write([replace(run(), open=opened.get)], tmp_path / "page.html")
    page = body(tmp_path / "page.html")
    assert "6,312" not in page
    assert page.count("<svg") == 2
    without = {path: content for path, content in opened.items() if "pictures" not in path}
    report.write([replace(run(), open=without.get)], tmp_path / "page.html")
    assert "Model" not in headings(body(tmp_path / "page.html"))


def test_variants_of_one_model_have_one_picture_of_it(tmp_path: Path) -> None:
    report.write([run(0), run(0, rate=0.2)], tmp_path / "page.html")
    assert body(tmp_path / "page.html").count("<svg") == 2
    other = replace(run(0, rate=0.2), open=(files(0) | pictures("a model of its own")).get)
    report.write([run(0), other], tmp_path / "page.html")
    assert body(tmp_path / "page.html").count("<svg") == 3


def test_what_a_run_went_on_from_is_told(tmp_path: Path) -> None:
    measures = {
        "start.tokens": 1000.0,
        "start.bytes": 1500.0,
        "start.bits_per_byte_before": 2.25,
        "start.bits_per_byte_at_once": 3.125,
    }
    scratch = run()
    later = replace(
        scratch, name="later", start="plays:7:abcdef", measures=scratch.measures | measures
    )
    report.write([scratch, later], tmp_path / "page.html")
    section = body(tmp_path / "page.html").split('id="loss"')[1].split("</section>")[0]
    assert section.count("goes on from a run of plays:7:abcdef") == 1
    assert "1,000 tokens and 1,500 bytes" in section
    assert "ended with 2.2500 bits per byte" in section
    assert "this one had 3.1250 before its first step" in section


def test_held_out_text_is_whole_and_the_dearest_piece_has_the_strongest_colour(
    tmp_path: Path,
) -> None:
    report.write([run()], tmp_path / "page.html")
    section = body(tmp_path / "page.html").split('id="held-out-text"')[1].split("</section>")[0]
    box = section.split('<div class="coloured"')[1].split("</div>")[0]
    pieces = re.findall(r'<i class="n(\d)">(.*?)</i>|(<hr>)', box, re.S)
    assert pieces == [("0", "a", ""), ("9", "\n", ""), ("", "", "<hr>"), ("4", "&lt;", "")]
    guesses = re.search(r"const texts = (.*);", without_library(tmp_path / "page.html"))
    assert guesses
    assert json.loads(guesses[1])["text-0"][1] == [9.0, [[None, 0.5], ["a", 0.25]]]


def test_held_out_text_of_many_variants_stays_small(tmp_path: Path) -> None:
    piece = ["ab", 1.0, [["a", 0.5]]]
    long = json.dumps({"split": "validation", "pieces": [piece] * 1500}).encode()
    runs = [
        replace(run(0, rate), open=(files(0) | {"results/heldout.json": long}).get)
        for rate in (0.1, 0.2, 0.3, 0.4)
    ]
    report.write(runs, tmp_path / "page.html")
    assert body(tmp_path / "page.html").count(">ab</i>") == 4 * 500


def test_samples_of_training_stand_by_their_steps(tmp_path: Path) -> None:
    report.write([run()], tmp_path / "page.html")
    section = body(tmp_path / "page.html").split('id="samples-during-training"')[1]
    titles = re.findall(r'<p class="who">(.*?)</p><pre>(after \d)', section.split("</section>")[0])
    assert titles == [("step 2", "after 2"), ("step 4", "after 4")]


def test_a_probe_says_above_its_charts_how_it_is_read(tmp_path: Path) -> None:
    report.write([run()], tmp_path / "page.html")
    text = body(tmp_path / "page.html").split('id="inside-the-model"')[1]
    heading, note = text.index("<h3>Spectra</h3>"), text.index("How spectra are read.")
    assert heading < note < text.index('class="vega"')


WHERE = "diverged at step 3: the loss is nan"


def lost(seed: int = 1, name: str = "lost", rate: float = 0.1, rows: int = 1) -> Run:
    """A run that diverged, as evaluate and probe leave it: few rows or none, no scores, no
    samples.
    """
    whole = run(seed, rate)
    curves = {
        key: table[:rows] if key in ("training", "validation") else table[:0]
        for key, table in whole.curves.items()
    }
    page = {
        "results/samples.md": b"# Samples\n\nNone: the run diverged at step 3 (the loss is nan).\n"
    }
    measures = {"parameters": 1234.0, "tokens_seen": 16.0}
    return Run(name, whole.params, measures, curves, page.get, diverged=WHERE)


def test_runs_that_diverged_are_said_and_drawn_until_there(tmp_path: Path) -> None:
    report.write([run(), lost()], tmp_path / "page.html")
    text = body(tmp_path / "page.html")
    assert "1 of the 2 runs diverged." in text
    assert "diverged at step 3" in text
    loss = next(
        chart
        for chart in drawn(tmp_path / "page.html").values()
        if "along training" in chart["description"]
    )
    assert {row["run"] for row in rows_of(loss)} == {"run 0", "lost"}


@pytest.mark.parametrize("rows", [0, 1])
def test_a_run_that_diverged_alone_has_a_page(tmp_path: Path, rows: int) -> None:
    report.write([lost(rows=rows)], tmp_path / "page.html")
    text = body(tmp_path / "page.html")
    assert f"It {WHERE}." in text
    assert "bits per byte" not in text
    assert ("Loss" in headings(text)) == bool(rows)
    assert headings(text)[-1] == "Every measure"


def test_there_is_no_mean_over_runs_of_which_one_diverged(tmp_path: Path) -> None:
    report.write([run(0), lost(1), run(0, rate=0.2), run(1, rate=0.2)], tmp_path / "page.html")
    text = body(tmp_path / "page.html")
    assert "2.550 bits per byte in “batch=0.2”, mean of 2 seeds" in text
    (bars,) = [
        chart
        for chart in drawn(tmp_path / "page.html").values()
        if "a bar each" in chart["description"]
    ]
    assert [row["what"] for row in rows_of(bars) if "variant" in row] == ["batch=0.2"]
    measured = dict(
        re.findall(r'<th scope="row">([^<]*bits_per_byte)</th>(.*?)</tr>', text.replace("\n", ""))
    )
    assert re.findall(r"<td[^>]*>(.*?)</td>", measured["validation.bits_per_byte"]) == ["", "2.55"]


def rows_of(chart: dict[str, Any]) -> list[dict[str, Any]]:
    """The rows of all data in a chart, each table once."""
    return [row for table in chart.get("datasets", {}).values() for row in table]


# --------------------------------------------------------------------------------------- several
# texts, many variants


def on(corpus: str, bits: float, seed: int = 0, hashed: bool = True, **params: Any) -> Run:
    """A run on a corpus; with `hashed`, its manifest is to be had."""
    whole = run(seed)
    options = {f"corpora.{corpus}.documents": 12, f"corpora.{corpus}.characters": 300}
    there = {**whole.params, "download.corpus": corpus, "download.ascii": True, **options, **params}
    manifest = {"corpus": corpus, "splits": {"validation": {"sha256": f"of {corpus}"}}}
    opened = files(seed) | {
        "data/corpus/manifest.json": json.dumps(manifest).encode() if hashed else b""
    }
    measures = {
        "validation.bits_per_byte": bits,
        "validation.bytes": 100.0 + len(corpus),
        "parameters": 1.0,
        "references.validation.kneser_ney": bits / 2,
    }
    name = f"{corpus} {' '.join(map(str, params.values()))}"
    return Run(name, there, measures, whole.curves, opened.get)


@pytest.mark.parametrize("hashed", [True, False])
def test_no_winner_is_named_across_texts(tmp_path: Path, hashed: bool) -> None:
    key = "models.transformer.width"
    shown = [
        on("grammar", 1.5, hashed=hashed, **{key: 16}),
        on("grammar", 1.4, hashed=hashed, **{key: 32}),
        on("markov", 0.5, hashed=hashed, **{key: 16}),
        on("markov", 0.6, hashed=hashed, **{key: 32}),
    ]
    judged = verdicts.judge_all(
        shown[:1], {"w": shown[1:2], "x": shown[2:3]}, ["validation.bits_per_byte"]
    )
    names = [variant.name for variant in grouping.group(shown)[0]]
    judged = [
        replace(one, variant=names[number]) for number, one in zip((1, 2), judged, strict=True)
    ]
    report.write(shown, tmp_path / "page.html", judged)
    text = body(tmp_path / "page.html")
    assert "on 2 texts, grammar and markov. Scores on different texts do not compare." in text
    assert (
        "Validation text of grammar: 1.400 bits per byte in “grammar width=32”, the lowest of"
        " 2 variants" in text
    )
    assert (
        "Validation text of markov: 0.500 bits per byte in “markov width=16”, the lowest of 2"
        " variants" in text
    )
    assert "of 4 variants (" not in text
    charts = [
        chart
        for chart in drawn(tmp_path / "page.html").values()
        if "a bar each" in chart["description"]
    ]
    bars = [[row["what"] for row in rows_of(chart) if "variant" in row] for chart in charts]
    assert bars == [
        ["grammar width=16", "grammar width=32"],
        ["markov width=16", "markov width=32"],
    ]
    levels = [
        [row["bits"] for row in rows_of(chart) if row["what"].startswith("Kneser")]
        for chart in charts
    ]
    assert levels == [[0.75], [0.25]]  # each text has its own references
    assert (
        "No verdict on variants scored on another text: markov width=16, markov width=32." in text
    )
    table = text.split('id="verdicts"')[1].split("</table>")[0]
    assert "grammar width=32" in table.split("<tbody>")[1]
    assert "markov" not in table.split("<tbody>")[1]


def test_a_text_whose_files_changed_under_the_same_params_is_another(tmp_path: Path) -> None:
    one, other = on("local", 1.5), on("local", 1.4, **{"train.steps": 9})
    manifest = json.dumps(
        {"corpus": "local", "splits": {"validation": {"sha256": "edited"}}}
    ).encode()
    other = replace(other, open={"data/corpus/manifest.json": manifest}.get)
    report.write([one, other], tmp_path / "page.html")
    assert "on 2 texts, local and local #2." in body(tmp_path / "page.html")


def test_a_run_is_of_the_text_that_its_results_tell_of_whatever_lies_beside_them(
    tmp_path: Path,
) -> None:
    one, other = on("grammar", 1.5), on("markov", 1.4)
    found = {"text": {"corpus": "grammar", "split": "validation", "sha256": "of grammar"}}
    beside = {"results/measures.json": json.dumps(found).encode()}
    one = replace(one, open=lambda path: beside.get(path) or other.open(path))
    report.write([one, other], tmp_path / "page.html")
    assert "on 2 texts, grammar and markov." in body(tmp_path / "page.html")


def variants(*runs: Run) -> list[Variant]:
    return grouping.group(runs)[0]


def test_labels_are_short_and_no_two_alike() -> None:
    rate, width = "optimizers.adamw.learning_rate", "models.transformer.width"
    four = variants(
        *(
            on(corpus, 1.0, **{width: size, rate: 0.004, "train.optimizer": "adamw"})
            for corpus in ("grammar", "markov")
            for size in (16, 32)
        )
    )
    assert labels(four) == [
        "grammar width=16",
        "grammar width=32",
        "markov width=16",
        "markov width=32",
    ]
    three = variants(
        *(
            on("grammar", 1.0, **{rate: value, "train.optimizer": "adamw"})
            for value in (0.1, 0.2, 0.3)
        )
    )
    assert labels(three) == ["rate=0.1", "rate=0.2", "rate=0.3"]
    long = [on("grammar", 1.0, **{"evaluate.text": f"{'x' * 90}{end}{'y' * 90}"}) for end in "abcd"]
    found = labels(variants(*long))
    assert len(set(found)) == 4
    assert max(map(len, found)) <= LONGEST
    assert labels(variants(on("grammar", 1.0)))[0].startswith("grammar")
    arms = variants(
        *(
            Run(
                f"{arm}, seed 0",
                {"train.optimizer": arm},
                {"a": 1.0},
                arm=f"studies/optimizers:{arm}",
            )
            for arm in ("soap", "muon")
        )
    )
    assert labels(arms) == ["soap", "muon"]
    code = variants(
        *(replace(run(0), name=name, made_with={"a.py": name}) for name in ("HEAD", "older"))
    )
    assert len(set(labels(code))) == 2


@given(
    st.lists(
        st.tuples(st.sampled_from("ab"), st.integers(0, 3), st.text(max_size=60)),
        min_size=1,
        max_size=12,
        unique=True,
    )
)
def test_whatever_tells_variants_apart_their_labels_do_too(
    drawn_values: list[tuple[str, int, str]],
) -> None:
    runs = [
        Run(
            f"run {number}",
            {"download.corpus": corpus, "train.steps": steps, "train.note": note},
            {"a": 1.0},
        )
        for number, (corpus, steps, note) in enumerate(drawn_values)
    ]
    there = variants(*runs)
    found = labels(there)
    assert len(set(found)) == len(there)
    assert all(0 < len(label) <= LONGEST for label in found)


def test_what_is_unfair_stands_once_for_each_kind_folded_below_the_verdicts(tmp_path: Path) -> None:
    shown = [run(0, rate) for rate in (0.1, 0.2, 0.3, 0.4)]
    names = [variant.name for variant in variants(*shown)]
    judged = [
        replace(one, variant=name)
        for name in names[1:]
        for one in verdicts.judge(shown[:1], shown[1:2], ["validation.bits_per_byte"])
    ]
    tokens, code = (
        "tokens seen in training: {} against the baseline's 32",
        "another version of the code: a.py, b.py",
    )
    unfair = {
        names[1]: [tokens.format(64), code],
        names[2]: [tokens.format(64), code],
        names[3]: [tokens.format(128)],
    }
    report.write(shown, tmp_path / "page.html", judged, ["a note"], unfair)
    text = body(tmp_path / "page.html")
    assert text.count("Unfair") == 1
    assert "Unfair: what 3 variants do not have in common" in text
    folded = text.split('<details class="unfair">')[1].split("</details>")[0]
    assert (
        folded.count("Tokens seen in training") == folded.count("Another version of the code") == 1
    )
    assert '<th scope="row">batch=0.2, batch=0.3</th><td>64 against' in folded.replace("\n", "")
    verdicts_end = text.index("</table>", text.index('id="verdicts"'))
    assert verdicts_end < text.index('class="unfair"') < text.index("Params that differ</h2>")


def test_many_notes_are_folded_and_few_are_not(tmp_path: Path) -> None:
    for count, summary in ((2, 0), (9, 1)):
        report.write(
            [run()], tmp_path / "page.html", (), [f"note {number}" for number in range(count)]
        )
        text = body(tmp_path / "page.html")
        assert text.count(f"<summary>{count} notes on these runs</summary>") == summary
        assert text.count('<p class="note">note ') == count


def test_what_the_test_split_said_is_shown_for_the_weights_that_were_scored(tmp_path: Path) -> None:
    ours = replace(
        run(), open=(files(0) | {"results/measures.json": b'{"weights_sha256": "aa"}'}).get
    )
    one = Opening(
        "2026-11-28T10:00:00Z", "wide", "abc", "aa", "plays", "t", 2.125, 2.25, 4.0, 6.0, None, 3, 2
    )
    report.write(
        [ours, run(1)],
        tmp_path / "page.html",
        openings=[one, replace(one, weights_sha256="bb", bits_per_byte=9.0)],
    )
    text = body(tmp_path / "page.html")
    section = text.split('id="test-split"')[1].split("</table>")[0]
    for piece in ("run 0", "2026-11-28", "2.1250", "2.2500", "3rd"):
        assert piece in section
    assert "9.0000" not in section
    report.write([run()], tmp_path / "page.html", openings=[one])
    assert "test-split" not in body(tmp_path / "page.html")


def test_params_that_differ_are_shown_and_others_are_not(tmp_path: Path) -> None:
    report.write([run(0), run(1, rate=0.2)], tmp_path / "page.html")
    table, others = (
        body(tmp_path / "page.html").split('<h2 id="params-that-differ">')[1].split("<details>")[:2]
    )
    assert "train.batch" in table
    assert "train.model" not in table
    assert "train.seed" not in table  # what runs are paired by
    assert "train.seed" in others
    assert "train.model" in others


def test_verdicts_are_told_in_words_and_drawn_with_their_intervals(tmp_path: Path) -> None:
    ours, theirs = (
        [run(seed) for seed in range(8)],
        [run(seed, rate=0.2, name=f"other {seed}") for seed in range(8)],
    )
    for one in theirs:
        one.measures["validation.bits_per_byte"] -= 0.3 + one.params["train.seed"] / 100
    judged = verdicts.judge(
        ours, theirs, ["validation.bits_per_byte"], names=("plain", "better one")
    )
    report.write([*ours, *theirs], tmp_path / "page.html", judged)
    text = body(tmp_path / "page.html")
    assert '<th scope="row">better one</th>' in text
    assert '<strong class="better">better</strong>' in text
    span = re.search(r'class="span" x1="([\d.]+)" x2="([\d.]+)"', text)
    assert span
    assert float(span[1]) == pytest.approx(
        6.0
    )  # the end that is farthest from zero, which is in the middle, at 80
    assert 6.0 < float(span[2]) < 80.0
    assert [
        button.count("train.batch") or button.count("batch=")
        for button in re.findall(r"<i></i>(.*?)<", text)
    ] == [1, 1]


def test_no_text_of_a_run_becomes_part_of_the_page(tmp_path: Path) -> None:
    report.write(
        [run(name=NASTY), run(1, name="</pre><img src=x onerror=alert(1)>")], tmp_path / "page.html"
    )
    text = without_library(tmp_path / "page.html")
    assert text.count("<script") == 3  # the library, the charts' data, and what draws them
    assert "<img" not in text
    assert "{{body}} &amp; &lt;b&gt;" in text  # and no place to fill was found in it
    assert drawn(tmp_path / "page.html")


def test_the_page_names_nothing_to_load(tmp_path: Path) -> None:
    report.write([run()], tmp_path / "page.html")
    text = without_library(tmp_path / "page.html")
    assert "default-src 'none'" in text  # a browser would refuse to load anything
    assert not re.search(r"<(link|img|iframe|script)[^>]+(src|href)=", text)
    assert (tmp_path / "page.html").stat().st_size < 3_000_000


def test_the_same_runs_give_the_same_bytes_and_every_chart_fits_its_schema(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, checked in (("one", False), ("two", True)):
        monkeypatch.setattr(charts, "CHECKED", checked)
        report.write([run(0), run(1)], tmp_path / name)
    assert (tmp_path / "one").read_bytes() == (tmp_path / "two").read_bytes()


def test_colours_can_be_told_from_the_paper_in_both_schemes() -> None:
    """Contrast as WCAG 2 defines it: 4.5 for text, 3 for what is drawn."""
    schemes = re.findall(
        r"color-scheme: \w+;(.*?)}", (Path(report.__file__).parent / "page.css").read_text(), re.S
    )
    assert len(schemes) == 2
    for scheme in schemes:
        colours = dict(re.findall(r"--([\w-]+): (#\w{6})", scheme))
        paper = luminance(colours["paper"])
        for name in ("ink", "quiet", "good", "bad"):
            assert contrast(luminance(colours[name]), paper) >= 4.5, name
        assert len({colours[f"c{number}"] for number in range(MOST_VARIANTS)}) == MOST_VARIANTS
        for number in range(MOST_VARIANTS):
            assert contrast(luminance(colours[f"c{number}"]), paper) >= 3, number
        for on, cell in (("on-low", "low"), ("on-low", "middle"), ("on-high", "high")):
            assert contrast(luminance(colours[on]), luminance(colours[cell])) >= 3, cell


def luminance(colour: str) -> float:
    parts = [int(colour[place : place + 2], 16) / 255 for place in (1, 3, 5)]
    linear = [
        part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts
    ]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(one: float, other: float) -> float:
    return (max(one, other) + 0.05) / (min(one, other) + 0.05)


# --------------------------------------------------------------------------------------------------
# in a real browser

needs_browser = pytest.mark.skipif(
    not (browser.CHROMIUM and browser.DRIVER),
    reason="neither chromium nor google-chrome, or no chromedriver",
)
SIZES = """
const shown = [...document.querySelectorAll('.vega')].filter(place => !place.closest('[hidden]'));
return shown.map(place => {
  const drawn = place.querySelector('svg.marks, canvas.marks');
  const box = drawn ? drawn.getBoundingClientRect() : {};
  return [place.id, box.width || 0, box.height || 0];
})"""


def after(seen: Any, script: str) -> None:
    """Do something on the page that makes it draw, and wait until it has."""
    from selenium.webdriver.support.ui import WebDriverWait

    times = "return Number(document.documentElement.dataset.drawn)"
    before = seen.execute_script(times)
    seen.execute_script(script)
    WebDriverWait(seen, 60).until(lambda one: one.execute_script(times) > before)


def two_variants(page: Path) -> None:
    report.write([run(0), run(1), run(0, rate=0.2, name=NASTY)], page)


@pytest.mark.pipeline
@needs_browser
@pytest.mark.parametrize(("width", "dark"), [(360, True), (800, False), (1400, True)])
def test_a_browser_without_a_network_draws_everything(
    tmp_path: Path, width: int, dark: bool
) -> None:
    page = tmp_path / "page.html"
    two_variants(page)
    with browser.opened(page, tmp_path / "profile", width, dark) as seen:
        sizes = seen.execute_script(SIZES)
        choose = (
            "for (const s of document.querySelectorAll('.chooser select'))"
            " { s.value = '1'; s.onchange(); }"
        )
        after(seen, choose)
        after(seen, choose)  # drawings wait for one another, so now all of the first have been made
        sizes += seen.execute_script(SIZES)
        assert {name for name, _, _ in sizes} == set(drawn(page))
        assert all(wide > 150 and high > 40 for _, wide, high in sizes), sizes
        assert seen.execute_script("return document.documentElement.scrollWidth") <= width
        assert seen.execute_script("return document.documentElement.dataset.scheme") == (
            "dark" if dark else "light"
        )
        assert browser.complaints(seen) == []
        assert browser.requests(seen) == {page.resolve().as_uri()}
        assert seen.title.startswith("Report")


@pytest.mark.pipeline
@needs_browser
@pytest.mark.parametrize("width", [400, 1400])
def test_over_two_texts_no_label_is_cut_and_every_one_is_seen(tmp_path: Path, width: int) -> None:
    key, rate = "models.transformer.width", "train.batch"
    shown = [
        on(corpus, bits, **{key: size, rate: value})
        for corpus, bits in (("grammar", 1.5), ("state_of_the_union", 2.5))
        for size in (16, 32)
        for value in (0.001, 0.002)
    ]
    report.write(shown, tmp_path / "page.html")
    wanted = labels(variants(*shown))
    texts = (
        "return [...document.querySelectorAll('figure text')].map(t => [t.textContent,"
        " t.getBoundingClientRect().right])"
    )
    with browser.opened(tmp_path / "page.html", tmp_path / "profile", width) as seen:
        there = seen.execute_script(texts)
        for label in wanted:
            assert label in [text for text, _ in there]
        assert all(
            right <= width
            for text, right in there
            if text in wanted or re.fullmatch(r"\d\.\d{3}", text)
        )
        buttons = seen.execute_script(
            "return [...document.querySelectorAll('.variant')].map(b => b.scrollWidth -"
            " b.clientWidth)"
        )
        assert max(buttons) <= 0  # nothing of a name is hidden in its button
        assert seen.execute_script("return document.documentElement.scrollWidth") <= width
        assert browser.complaints(seen) == []


@pytest.mark.pipeline
@needs_browser
def test_a_button_takes_a_variant_out_of_all_charts_and_brings_it_back(tmp_path: Path) -> None:
    two_variants(tmp_path / "page.html")
    lines = (
        "return [...document.querySelectorAll('.vega')].map(p =>"
        " p.querySelectorAll('.mark-line path[d]').length)"
    )
    with browser.opened(tmp_path / "page.html", tmp_path / "profile", 1000) as seen:
        button = "document.querySelectorAll('.variant')[1]"
        before = seen.execute_script(lines)
        seen.execute_script(f"{button}.click()")
        fewer = seen.execute_script(lines)
        assert sum(fewer) < sum(before)
        assert all(
            now < then or then <= 1 or now == then == 0
            for now, then in zip(fewer, before, strict=True)
        )
        assert seen.execute_script(f"return {button}.getAttribute('aria-pressed')") == "false"
        seen.execute_script(f"{button}.click()")
        assert seen.execute_script(lines) == before
        assert browser.complaints(seen) == []


@pytest.mark.pipeline
@needs_browser
def test_another_scheme_keeps_what_was_chosen(tmp_path: Path) -> None:
    two_variants(tmp_path / "page.html")
    paper = "return getComputedStyle(document.body).backgroundColor"
    chosen = "return document.querySelector('input[type=radio][value=flops]').checked"
    with browser.opened(tmp_path / "page.html", tmp_path / "profile", 1000) as seen:
        seen.execute_script("document.querySelector('input[type=radio][value=flops]').click()")
        seen.execute_script("document.querySelectorAll('.variant')[0].click()")
        colour, marks = (
            seen.execute_script(paper),
            seen.execute_script("return document.querySelectorAll('path[d]').length"),
        )
        after(seen, "document.getElementById('scheme').click()")
        assert seen.execute_script(paper) != colour
        assert seen.execute_script(chosen)
        assert seen.execute_script("return document.querySelectorAll('path[d]').length") == marks


@pytest.mark.pipeline
@needs_browser
def test_what_a_pointer_finds_is_told_as_text(tmp_path: Path) -> None:
    from selenium.webdriver import ActionChains
    from selenium.webdriver.common.by import By

    report.write([run(name=NASTY)], tmp_path / "page.html")
    with browser.opened(tmp_path / "page.html", tmp_path / "profile", 1000) as seen:
        bar = seen.find_element(By.CSS_SELECTOR, "#chart-0 .layer_1_marks path")
        ActionChains(seen).move_to_element(bar).perform()
        told = seen.execute_script(
            "return document.getElementById('vg-tooltip-element').textContent"
        )
        assert "taken over" in told
        assert "2.5" in told
        assert seen.title == f"Report: {NASTY}"
        assert browser.complaints(seen) == []


@pytest.mark.pipeline
@needs_browser
@pytest.mark.parametrize("width", [400, 1400])
def test_what_is_wider_than_its_place_has_an_arrow_at_its_edge(tmp_path: Path, width: int) -> None:
    report.write([run(0), run(0, rate=0.2)], tmp_path / "page.html")
    script = """return [...document.querySelectorAll('*')].filter(place => {
      const scrolls = getComputedStyle(place).overflowX !== 'visible';
      return place.clientWidth && scrolls && place.scrollWidth > place.clientWidth + 2;
    }).map(place => {
      const frame = place.closest('.scrolls');
      const arrow = frame ? getComputedStyle(frame, '::after').display : 'none';
      return [place.className, arrow];
    })"""
    with browser.opened(tmp_path / "page.html", tmp_path / "profile", width) as seen:
        wide = seen.execute_script(script)
        assert wide or width > 400
        assert [name for name, arrow in wide if arrow == "none"] == []
        seen.execute_script("document.querySelector('.links').scrollLeft = 9999")
        assert browser.complaints(seen) == []


@pytest.mark.pipeline
@needs_browser
def test_a_pointer_and_arrow_keys_find_the_likeliest_tokens(tmp_path: Path) -> None:
    from selenium.webdriver import ActionChains, Keys
    from selenium.webdriver.common.by import By

    report.write([run()], tmp_path / "page.html")
    hint = (
        "return [document.getElementById('hint').hidden, document.getElementById('hint').innerText]"
    )
    with browser.opened(tmp_path / "page.html", tmp_path / "profile", 400) as seen:
        first = seen.find_element(By.CSS_SELECTOR, ".coloured i")
        ActionChains(seen).move_to_element(first).perform()
        hidden, text = seen.execute_script(hint)
        assert not hidden
        assert text.startswith("a 0.01 bits, probability 99%")
        assert "<b>" in text
        box = seen.find_element(By.CSS_SELECTOR, ".coloured")
        box.send_keys(Keys.ARROW_RIGHT)
        hidden, text = seen.execute_script(hint)
        assert text.startswith("⏎ 12.98 bits, probability <0.1%")
        assert "(end of document)" in text
        assert browser.complaints(seen) == []
