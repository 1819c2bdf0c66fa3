"""`lmlab explore` as its users use it: started in a project, looked at in a browser, ended."""

import json
import re
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import browser
import pytest
import requests
from test_starting import OWN, refused

pytestmark = pytest.mark.pipeline
needs_browser = pytest.mark.skipif(
    browser.CHROMIUM is None or browser.DRIVER is None, reason="no Chromium with its driver"
)


@contextmanager
def explorer(workspace: Any, *words: str) -> Iterator[str]:
    """The address at which a page is served; in the end it is stopped as Ctrl-C does."""
    command = ["python", "-c", OWN, "explore", "--no-browser", *words]
    process = subprocess.Popen(
        command,
        cwd=workspace.folder,
        env=workspace.environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    assert process.stdout is not None
    line = process.stdout.readline()
    found = re.search(r"http://127\.0\.0\.1:\d+/", line)
    assert found, line + process.stdout.read()
    try:
        yield found[0]
    finally:
        process.send_signal(signal.SIGINT)
        said, _ = process.communicate(timeout=60)
        assert process.returncode == 0, said
        assert said == ""


def test_runs_are_served_by_name_and_nothing_is_written(workspace: Any) -> None:
    workspace.run("dvc", "exp", "run", "--temp", "-n", "other", "train", "-S", "train.seed=5")
    before = workspace.run("git", "status", "--porcelain").stdout
    references = workspace.run("git", "for-each-ref").stdout
    with explorer(workspace) as address:
        about = requests.get(f"{address}api/about", timeout=60).json()
        assert [run["name"] for run in about["runs"]] == ["workspace"]
        assert about["runs"][0]["moments"][0] == 0
        assert about["held_out"]
    with explorer(workspace, "main", "other") as address:
        about = requests.get(f"{address}api/about", timeout=60).json()
        assert [run["name"] for run in about["runs"]] == ["main", "other"]
        scored = [
            requests.post(f"{address}api/window", json={"run": run, "text": "abc"}, timeout=60)
            for run in (0, 1)
        ]
        one, other = (answer.json()["plain"]["nats"] for answer in scored)
        assert one != other
    assert workspace.run("git", "status", "--porcelain").stdout == before
    assert workspace.run("git", "for-each-ref").stdout == references
    assert "there is no run 'othr'" in refused(workspace, "explore", "othr")
    workspace.path("data/model/weights.safetensors").unlink()
    assert "data/model/weights.safetensors" in refused(workspace, "explore")


@needs_browser
def test_a_step_of_learning_and_the_model_s_parts_are_shown(workspace: Any, tmp_path: Path) -> None:
    with (
        explorer(workspace) as address,
        browser.opened(address, tmp_path / "profile", 1000) as page,
    ):
        look = Page(page)
        look.put(page.find_element("css selector", "#rule-beside"), "feedback_alignment", "input")
        look.put(page.find_element("css selector", "#rate"), "0.5", "input")
        page.execute_script("document.getElementById('take-step').click()")
        look.wait("document.querySelectorAll('#steps .step').length === 2")
        asked = {"rule": "feedback_alignment", "rate": 0.5}
        beside = requests.post(f"{address}api/step", json=asked, timeout=60).json()
        own, other = look.every("#steps .step")
        rows = other.find_elements("css selector", ".units tbody tr:not(.inner)")
        assert len(rows) == len(beside["units"])
        for row, unit in zip(rows, beside["units"], strict=True):
            assert unit["name"] in row.text
            assert f"{unit['cosine']:.3f}" in row.text
        assert "1.000" in own.text
        better = sum(
            after < before
            for row in beside["batch"]
            for before, after in zip(row["before"], row["after"], strict=True)
        )
        assert f"the batch: {better} of" in other.text
        rows[1].find_element("css selector", "button").click()
        assert beside["units"][1]["weights"][0]["name"] in other.text

        drawn = requests.post(f"{address}api/drawing", json={}, timeout=60).json()
        look.wait("document.querySelectorAll('#model .box').length > 3")
        boxes = {box.get_attribute("data-path") for box in look.every("#model .box")}
        assert {"", "embedding", "blocks.0", "blocks.0.attention", "readout"} <= boxes
        assert drawn["file"] in look.text("#model")
        assert drawn["doc"] in look.text("#model")
        switch = "[data-path='blocks.0'] .parts button"
        page.execute_script(f'document.querySelector("{switch}").click()')
        look.wait("document.querySelectorAll('.tokens.changed').length === 1")
        off = look.text("#changes")
        assert "blocks.0.attention.head_outputs" in off
        assert "blocks.0.feed_forward.units" in off

        link = page.current_url
        page.get("about:blank")
        page.get(link)
        look.wait("document.documentElement.dataset.drawn")
        values = "return [...arguments].map((id) => document.getElementById(id).value)"
        found = page.execute_script(values, "rule-beside", "rate", "rule", "seed")
        assert found == ["feedback_alignment", "0.5", "", "0"]
        assert browser.complaints(page) == []


@needs_browser
def test_features_are_found_shown_and_switched_off(workspace: Any, tmp_path: Path) -> None:
    with (
        explorer(workspace) as address,
        browser.opened(address, tmp_path / "profile", 1000) as page,
    ):
        look = Page(page)
        page.execute_script("document.getElementById('find-features').click()")
        look.wait("document.querySelectorAll('#found .parts button').length > 0")
        place = page.find_element("css selector", "#feature-place").get_property("value")
        found = requests.post(
            f"{address}api/features", json={"place": place}, timeout=60
        ).json()  # found before, so it takes no time
        alive = [one for one in found["list"] if one["density"] > 0]
        assert len(look.every("#found .parts button")) == min(60, len(alive))
        assert str(found["features"]) in look.text("#found")
        page.execute_script("document.querySelector('#found .parts button').click()")
        look.wait("document.getElementById('unit-texts').children.length > 0")
        asked = {"place": place, "feature": alive[0]["feature"]}
        texts = requests.post(f"{address}api/feature", json=asked, timeout=60).json()["texts"]
        assert len(look.every("#unit-texts li")) == len(texts)
        assert f"feature {alive[0]['feature']}" in look.text("#of-unit")
        look.put(page.find_element("css selector", "#of-unit input"), "0")
        look.wait("document.querySelectorAll('.tokens.changed').length === 1")
        assert f"{place}, feature {alive[0]['feature']}" in look.text("#changes")
        look.wait("document.getElementById('chosen').textContent.includes(': features')")
        assert browser.complaints(page) == []


@needs_browser
def test_two_runs_are_written_into_one_file_that_needs_nothing(
    workspace: Any, tmp_path: Path
) -> None:
    workspace.run("dvc", "exp", "run", "--temp", "-n", "again", "train", "-S", "train.seed=6")
    file = tmp_path / "two.html"
    said = workspace.run("python", "-c", OWN, "explore", "main", "again", "--out", str(file))
    assert f"{file}: " in said.stdout
    assert "MB, opens in a browser" in said.stdout
    with browser.opened(file, tmp_path / "profile", 700) as page:
        look = Page(page)
        assert look.texts(look.every("#run option")) == ["main", "again"]
        look.put(page.find_element("css selector", "#beside"), "1")
        look.wait("document.querySelectorAll('#rows .tokens').length === 2")
        one, other = (row.text for row in look.every(".row-name"))
        assert one.removeprefix("main") != other.removeprefix("again")
        # a long text is painted while it is read, both rows of it
        look.put(page.find_element("css selector", "#text"), "the cat sat. " * 500, "input")
        look.wait("document.getElementById('status').textContent.startsWith('6500 tokens in')")
        for row in look.every("#rows .tokens"):
            assert len(row.find_elements("css selector", "span[title]")) == 6500
        assert all("0.0000" not in row.text for row in look.every(".row-name"))
        hidden = "return document.getElementById('learning').hidden"
        assert page.execute_script(hidden)
        assert browser.complaints(page) == []
        assert [
            url for url in browser.requests(page) if not url.startswith(("file:", "data:"))
        ] == []
    assert "name it .html" in refused(workspace, "explore", "--out", "two.txt")


@needs_browser
@pytest.mark.parametrize(("width", "dark"), [(400, False), (760, False), (1400, True)])
def test_the_page_shows_the_model_and_reaches_into_it(
    workspace: Any, tmp_path: Path, width: int, dark: bool
) -> None:
    with (
        explorer(workspace) as address,
        browser.opened(address, tmp_path / "profile", width, dark) as page,
    ):
        look = Page(page)
        tokens = look.every(".tokens span")
        about = requests.get(f"{address}api/about", timeout=60).json()
        text = page.execute_script("return document.getElementById('text').value")
        assert text == about["held_out"][0]
        assert "".join(look.texts(tokens)).replace("⏎", "") == text
        asked = {"text": text, "window": 0}
        window = requests.post(f"{address}api/window", json=asked, timeout=60).json()
        assert f"rank {window['plain']['rank'][0] + 1}" in look.text("#chosen")

        tokens[4].click()
        look.wait("document.querySelectorAll('.history tbody tr').length > 2")
        asked_of = {"text": text, "token": 4}
        past = requests.post(f"{address}api/history", json=asked_of, timeout=60).json()["moments"]
        assert len(look.every(".history tbody tr")) == len(past)
        assert f"{past[0]['nats'] / 0.6931471805599453:.2f}" in look.text(".history")
        look.wait("document.querySelector('[data-head] .role').textContent.length > 3")
        look.wait("document.querySelectorAll('#chosen .card').length > 4")
        assert "block 0, head 1" in look.text("#chosen")
        head = page.find_element(
            "css selector", "[aria-label='factor of blocks.0.attention.head_outputs 1']"
        )
        look.put(head, "0")
        look.wait("document.querySelectorAll('.tokens.changed').length === 1")
        assert "blocks.0.attention.head_outputs, part 1" in look.text("#changes")
        change = {"kind": "scale", "place": "blocks.0.attention.head_outputs", "unit": 1}
        change |= {"factor": 0}
        asked |= {"changes": [change]}
        window = requests.post(f"{address}api/window", json=asked, timeout=60).json()
        came = f"rank {window['changed']['rank'][4] + 1}"
        look.wait("document.getElementById('chosen').textContent.includes('changed: ')")
        assert came in look.text("#chosen").split("changed: ")[1]

        link = page.current_url
        page.execute_script("document.getElementById('undo').click()")
        look.wait("document.querySelectorAll('.tokens.changed').length === 0")
        page.get("about:blank")
        page.get(link)
        look.wait("document.querySelectorAll('.tokens.changed').length === 1")

        look.put(page.find_element("css selector", "#moment"), "0", "input")
        look.wait("document.getElementById('step').textContent === '0'")
        look.put(page.find_element("css selector", "#text"), "", "input")
        look.wait("document.getElementById('status').textContent.startsWith('Type a text')")
        look.put(page.find_element("css selector", "#text"), "the cat", "input")
        look.wait("document.querySelectorAll('#distribution button').length > 3")
        page.execute_script("document.getElementById('draw').click()")
        look.wait("document.getElementById('text').value.length > 7")
        page.execute_script("document.getElementById('back').click()")
        look.wait("document.getElementById('text').value === 'the cat'")

        wide = "return document.documentElement.scrollWidth <= window.innerWidth"
        assert page.execute_script(wide)
        assert browser.complaints(page) == []
        assert all(url.startswith(address) for url in browser.requests(page))


class Page:
    """A page, asked as a person would ask it."""

    def __init__(self, browser: Any) -> None:
        self.browser = browser

    def every(self, selector: str) -> list[Any]:
        return list(self.browser.find_elements("css selector", selector))

    def text(self, selector: str) -> str:
        script = "return document.querySelector(arguments[0]).textContent"
        return str(self.browser.execute_script(script, selector))

    def texts(self, elements: list[Any]) -> list[str]:
        script = "return arguments[0].map((one) => one.textContent)"
        return list(self.browser.execute_script(script, elements))

    def wait(self, condition: str) -> None:
        from selenium.webdriver.support.ui import WebDriverWait

        WebDriverWait(self.browser, 60).until(
            lambda browser: browser.execute_script(f"return {condition}"), condition
        )

    def put(self, element: Any, value: str, event: str = "change") -> None:
        """Give a field a value, as typing it would."""
        self.browser.execute_script(
            "arguments[0].value = arguments[1];"
            f"arguments[0].dispatchEvent(new Event({json.dumps(event)}, {{bubbles: true}}))",
            element,
            value,
        )
