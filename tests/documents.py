"""The project's documents, read as tests need them: links, blocks of code, commands."""

import re
import shlex
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from small import PROJECT

NOT_RUN = re.compile(r"<!-- not run: (.+) -->\n$")
BLOCK = re.compile(r"^```(\w*)\n(.*?)^```$", re.M | re.S)


@dataclass(frozen=True)
class Block:
    """A fenced block of code."""

    page: str
    """Relative to the project, with slashes."""
    language: str
    text: str
    not_run: str
    """Why it is not run; empty where it is."""

    @property
    def commands(self) -> list[list[str]]:
        """The words of each command of a console block, its comments left out.

        What is joined by `&&` or `|` comes apart.
        """
        lines = [line.removeprefix("$ ") for line in self.text.splitlines()]
        return [words for line in lines for words in _apart(shlex.split(line, comments=True))]


def _apart(words: list[str]) -> Iterator[list[str]]:
    command: list[str] = []
    for word in words:
        if word in ("&&", "|"):
            yield command
            command = []
        else:
            command.append(word)
    if command:
        yield command


def pages() -> list[str]:
    """Every Markdown file that Git holds or would take, relative to the project."""
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z", "*.md"],
        cwd=PROJECT,
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    names = [name for name in listed.split("\0") if name]
    return sorted(name for name in names if (PROJECT / name).is_file())


def guides() -> list[str]:
    """The pages that say how things are now: neither results nor the log, which is history."""
    return [page for page in pages() if not page.startswith(("docs/log/", "results/", "CHANGELOG"))]


def read(page: str) -> str:
    """A page's text."""
    return (PROJECT / page).read_text(encoding="utf-8")


def blocks(page: str, language: str = "") -> list[Block]:
    """A page's blocks of code, of one language or of all."""
    text = read(page)
    found = []
    for match in BLOCK.finditer(text):
        reason = NOT_RUN.search(text[: match.start()])
        block = Block(page, match[1], match[2], reason[1] if reason else "")
        if language in ("", block.language):
            found.append(block)
    return found


def prose(page: str) -> str:
    """A page's text without its blocks of code."""
    return BLOCK.sub("", read(page))


def anchors(path: Path) -> set[str]:
    """What can follow `#` in a link to a page: its headings as GitHub spells them."""
    headings = re.findall(r"^#{1,6} (.+)$", BLOCK.sub("", path.read_text(encoding="utf-8")), re.M)
    return {
        re.sub(r"[^\w\- ]", "", re.sub(r"[`*]", "", heading).lower()).replace(" ", "-")
        for heading in headings
    }
