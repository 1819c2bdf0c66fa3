"""The lessons: their code runs as it stands, prints what they say, and answers its exercise."""

import ast
import code
import io
import re
from collections.abc import Iterator
from contextlib import redirect_stdout
from types import CodeType
from typing import Any

import documents
import pytest
import torch
from small import PROJECT

INDEX = "docs/lessons/README.md"
LESSONS = [
    page for page in documents.guides() if page.startswith("docs/lessons/") and page != INDEX
]
every_lesson = pytest.mark.parametrize("page", LESSONS)


@pytest.fixture(autouse=True)
def in_the_project(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.chdir(PROJECT)
    threads, state = torch.get_num_threads(), torch.get_rng_state()
    yield
    torch.set_num_threads(threads)
    torch.set_rng_state(state)


@every_lesson
def test_the_code_of_a_lesson_prints_what_the_lesson_says(page: str) -> None:
    """Every block that prints is followed by what it prints."""
    namespace: dict[str, Any] = {}
    printed, compared = "", 0
    for block in documents.blocks(page):
        if block.language == "python":
            assert not printed, f"a block's output is not shown: {printed}"
            with redirect_stdout(io.StringIO()) as stream:
                exec(compile(block.text, page, "exec"), namespace)
            printed = stream.getvalue()
        elif block.language == "text":
            assert printed == block.text
            printed, compared = "", compared + 1
    assert not printed
    assert compared >= 3


class Prompt(code.InteractiveConsole):
    """Python's prompt, which keeps what it would run."""

    def __init__(self) -> None:
        super().__init__()
        self.read: list[str] = []

    def runsource(self, source: str, filename: str = "", symbol: str = "single") -> bool:
        wants_more = super().runsource(source, filename, symbol)
        if not wants_more:
            self.read.append(source)
        return wants_more

    def runcode(self, code: CodeType) -> None:
        """Run nothing."""

    def showsyntaxerror(self, filename: str | None = None, **options: Any) -> None:
        refused = "\n".join(self.buffer)
        pytest.fail(f"the prompt refuses the last line of:\n{refused}")


@every_lesson
def test_the_prompt_reads_the_code_of_a_lesson_as_it_is_written(page: str) -> None:
    """Pasted with an empty line behind each block; its prompt ends a function at an empty line."""
    for block in documents.blocks(page, "python"):
        prompt = Prompt()
        for line in [*block.text.splitlines(), ""]:
            prompt.push(line)
        assert not prompt.buffer, f"not at its end: {block.text}"
        read = ast.parse("\n".join(prompt.read))
        assert ast.dump(read) == ast.dump(ast.parse(block.text)), block.text


@every_lesson
def test_a_lesson_has_all_that_a_lesson_has(page: str) -> None:
    text = documents.read(page)
    assert re.findall(r"^\*\*(.+)\.\*\*", text, re.M)[:2] == ["The idea", "The formula"]
    headings = re.findall(r"^## (.+)$", documents.prose(page), re.M)
    assert headings[-2:] == ["Read", "Exercise"]
    answer = text.split("<details><summary>Answer</summary>")[1]
    assert "```python" in answer
    assert answer.rstrip().endswith("</details>")
    commands = [block for block in documents.blocks(page, "console") if not block.not_run]
    assert commands


def test_the_index_lists_every_lesson() -> None:
    linked = re.findall(r"\]\((\w+\.md)\)", documents.read(INDEX))
    assert sorted(f"docs/lessons/{name}" for name in linked) == LESSONS
