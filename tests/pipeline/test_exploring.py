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
@pytest.mark.parametrize(("width", "dark"), [(400, False), (1400, True)])
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
