"""The report: what is on the page, that nothing of a run gets out of its place, and what a browser makes of it."""

import json
import re
from pathlib import Path
from typing import Any

import browser
import pandas as pd
import pytest
import vl_convert

from lmlab.experiments import report, verdicts
from lmlab.experiments.run import Run

NASTY = "</script><script>document.title = 'taken over'</script>{{body}} & <b>"


def files(seed: int) -> dict[str, bytes]:
    readings = [
        {"step": step, "tokens": step * 8, "probe": "spectra", "measure": "stable_rank", "where": where, "value": step + 0.5}
        for step in (0, 4)
        for where in ("blocks.0.up.weight", "blocks.1.up.weight")
    ]
    close_up = {
        "tokens": ["start", "a", "␣"],
        "attention": [[[[1.0, 0.0, 0.0], [0.5, 0.5, 0.0], [0.2, 0.3, 0.5]]], []],
        "lens": [[["a", "b", "a"], [0.5, 0.6, 0.7]], [["b", "␣", "start"], [0.1, 0.9, 0.3]]],
    }
    return {
        "results/samples.md": f"# Samples\n\n~~~~~~text\nsample {seed} {NASTY}\n~~~~~~\n".encode(),
        "data/corpus/manifest.json": json.dumps({"corpus": "plays", "source": "a shelf", "licence": "free"}).encode(),
        "data/tokenizer/report.json": json.dumps({"vocabulary": 65, "bytes_per_token": 1.5}).encode(),
        "data/timing/train.json": json.dumps(
            {"training_seconds": 1.25, "seconds_at": {"step": [2, 4], "seconds": [0.5, 1.0]}}
        ).encode(),
        "data/probes/probes.parquet": pd.DataFrame(readings).to_parquet(),
        "data/probes/close_up.json": json.dumps(close_up).encode(),
    }


def run(seed: int = 0, rate: float = 0.1, name: str = "") -> Run:
    steps = {"step": [2, 4], "tokens": [16, 32], "operations": [1e6, 2e6]}
    curves = {
        "training": pd.DataFrame({**steps, "train_nats": [3.0, 2.0 + seed]}),
        "validation": pd.DataFrame({**steps, "validation_nats": [3.1, 2.2 + seed]}),
        "calibration": pd.DataFrame({"confidence": [0.2, 0.8], "accuracy": [0.1, 0.9], "predictions": [5, 6]}),
        "loss_by_position": pd.DataFrame({"position": [1, 2], "validation_nats": [3.0, 2.0]}),
        "character_classes": pd.DataFrame({"class": ["space", "capital"], "nats_per_byte": [0.5, 2.5]}),
    }
    measures = {
        "validation.bits_per_byte": 2.5 + seed / 10, "parameters": 1234.0, "tokens_seen": 32.0,
        "references.validation.kneser_ney": 2.25,
    }  # fmt: skip
    params = {"train.model": "transformer", "train.learning_rule": "backprop", "train.seed": seed, "train.batch": rate}
    return Run(name or f"run {seed}", params, measures, curves, files(seed).get)


def body(page: Path) -> str:
    """What is read on it, without the drawing library and the charts' data."""
    return page.read_text(encoding="utf-8").split("<body>")[1].split("<script>")[0]


def without_library(page: Path) -> str:
    text = page.read_text(encoding="utf-8")
    library = vl_convert.javascript_bundle().replace("</script", "<\\/script")
    assert library in text
    return text.replace(library, "")


def drawn(page: Path) -> dict[str, Any]:
    text = page.read_text(encoding="utf-8")
    found = re.search(r'<script type="application/json" id="charts">(.*?)</script>', text, re.S)
    assert found
    charts: dict[str, Any] = json.loads(found[1])
    return charts


def test_one_run_is_told_in_a_sentence_with_its_references_beside_it(tmp_path: Path) -> None:
    report.write([run()], tmp_path / "page.html")
    text = body(tmp_path / "page.html")
    for piece in ("1,234 parameters", "plays (a shelf; free)", "2.500 bits per byte", "0.250 more than a Kneser-Ney n-gram"):
        assert piece in text, piece
    titles = re.findall(r"<h2>(.*?)</h2>", text)
    assert titles == [
        "Loss", "Params", "Samples", "Calibration", "Loss by position", "Loss by class of character", "Tokenizer",
        "Inside, over training", "A text, read by the model", "Cost of training",
    ]  # fmt: skip
    assert len(drawn(tmp_path / "page.html")) == len(re.findall(r'id="chart-\d+"', text)) == 7


def test_what_a_run_lacks_is_left_out(tmp_path: Path) -> None:
    bare = Run("bare", {"train.seed": 0}, {"validation.bits_per_byte": 3.0})
    report.write([bare], tmp_path / "page.html")
    assert re.findall(r"<h2>(.*?)</h2>", body(tmp_path / "page.html")) == ["Params"]
    assert drawn(tmp_path / "page.html") == {}
    blocks_without_heads = {"tokens": ["start"], "attention": [[], []], "lens": [[["a"], [0.5]], [["b"], [0.5]]]}
    lstm = Run(
        "lstm", {}, {"parameters": 1.0}, open={"data/probes/close_up.json": json.dumps(blocks_without_heads).encode()}.get
    )
    report.write([lstm], tmp_path / "page.html")
    assert len(drawn(tmp_path / "page.html")) == 1


def test_runs_that_broke_down_are_said_and_not_drawn(tmp_path: Path) -> None:
    report.write([run(), Run("lost", {"train.seed": 1}, {}, broke="the loss is no number")], tmp_path / "page.html")
    text = body(tmp_path / "page.html")
    assert "broke down" in text
    assert "lost" in text
    assert "lost" not in json.dumps(drawn(tmp_path / "page.html"))


def test_params_that_differ_are_shown_and_others_are_not(tmp_path: Path) -> None:
    report.write([run(0), run(1, rate=0.2)], tmp_path / "page.html")
    table = body(tmp_path / "page.html").split("Params that differ")[1].split("<details>")[0]
    assert "train.batch" in table
    assert "train.seed" in table
    assert "train.model" not in table


def test_verdicts_are_told_in_words_and_drawn_with_their_intervals(tmp_path: Path) -> None:
    ours, theirs = [run(seed) for seed in range(8)], [run(seed, rate=0.2, name=f"other {seed}") for seed in range(8)]
    for one in theirs:
        one.measures["validation.bits_per_byte"] -= 0.3 + one.params["train.seed"] / 100
    judged = verdicts.judge(ours, theirs, ["validation.bits_per_byte"], names=("plain", "better one"))
    report.write([*ours, *theirs], tmp_path / "page.html", judged)
    text = body(tmp_path / "page.html")
    assert "better one, validation.bits_per_byte: <strong>better</strong>" in text
    spec = json.dumps(drawn(tmp_path / "page.html")["chart-0"])
    assert f"{judged[0].low}" in spec
    assert "Curves and samples below are of the first 8 runs" in text


def test_no_text_of_a_run_becomes_part_of_the_page(tmp_path: Path) -> None:
    report.write([run(name=NASTY), run(1, name="</pre><img src=x onerror=alert(1)>")], tmp_path / "page.html")
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


def test_the_same_runs_give_the_same_bytes(tmp_path: Path) -> None:
    for name in ("one", "two"):
        report.write([run(0), run(1)], tmp_path / name)
    assert (tmp_path / "one").read_bytes() == (tmp_path / "two").read_bytes()


@pytest.mark.skipif(
    not (browser.CHROMIUM and browser.DRIVER), reason="neither chromium nor google-chrome, or no chromedriver"
)
@pytest.mark.parametrize(("width", "dark"), [(360, True), (800, False), (1400, False)])
def test_a_browser_without_a_network_draws_everything(tmp_path: Path, width: int, dark: bool) -> None:
    page = tmp_path / "page.html"
    report.write([run(0), run(1, rate=0.2, name=NASTY)], page)
    with browser.opened(page, tmp_path / "profile", width, dark) as seen:
        assert browser.complaints(seen) == []
        assert browser.requests(seen) == {page.resolve().as_uri()}
        sizes = seen.execute_script(
            "return [...document.querySelectorAll('[id^=chart-]')].map(d => d.querySelector('svg'))"
            ".map(s => s ? [s.getBoundingClientRect().width, s.querySelectorAll('path,text,rect').length] : [0, 0])"
        )
        assert len(sizes) == len(drawn(page))
        assert all(wide > 150 and marks > 5 for wide, marks in sizes), sizes
        assert seen.execute_script("return document.documentElement.scrollWidth") <= width
        assert seen.title.startswith("Report")
        before = seen.execute_script(
            "return [document.documentElement.dataset.scheme, document.documentElement.dataset.drawn]"
        )
        assert before[0] == ("dark" if dark else "light")
        paper = "return getComputedStyle(document.body).backgroundColor"
        colour = seen.execute_script(paper)
        seen.execute_script("document.getElementById('scheme').click()")
        assert seen.execute_script(paper) != colour


@pytest.mark.skipif(
    not (browser.CHROMIUM and browser.DRIVER), reason="neither chromium nor google-chrome, or no chromedriver"
)
def test_a_click_on_the_legend_hides_a_run(tmp_path: Path) -> None:
    from selenium.webdriver.common.by import By

    report.write([run(0), run(1)], tmp_path / "page.html")
    with browser.opened(tmp_path / "page.html", tmp_path / "profile", 1000) as seen:
        faded = (
            "return [...document.querySelectorAll('#chart-0 .mark-line path')]"
            ".map(p => p.getAttribute('stroke-opacity') || p.getAttribute('opacity') || '1')"
        )
        before = seen.execute_script(faded)
        entries = [t for t in seen.find_elements(By.CSS_SELECTOR, "#chart-0 .role-legend-label text") if t.text == "run 1"]
        entries[0].click()
        after = seen.execute_script(faded)
        assert before != after
        assert browser.complaints(seen) == []
