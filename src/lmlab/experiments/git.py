"""Git, run as a person would run it in a folder. Every git command goes through here."""

import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lmlab.core.errors import UserError


class GitError(UserError):
    """Git refused a command; the message names the command and repeats what Git says."""


class GitNotRunError(UserError):
    """Git could not be started: it is not installed, or there is no such folder to run it in."""


def output(*words: str, root: Path = Path()) -> str:
    """What a git command prints, as text. Raises GitError where it fails."""
    completed = _completed(words, root, encoding="utf-8")
    if completed.returncode:
        complaint = " ".join(completed.stderr.split()) or str(completed.returncode)
        raise GitError(f"git {' '.join(words)}: {complaint}")
    return str(completed.stdout)


def answers(*words: str, root: Path = Path()) -> bool:
    """Whether a git command succeeds and prints something."""
    content = printed(*words, root=root)
    return bool(content and content.strip())


def printed(*words: str, root: Path = Path(), stdin: bytes | None = None) -> bytes | None:
    """What a git command prints, as bytes; None where it fails."""
    completed = _completed(words, root, stdin=stdin)
    content: bytes = completed.stdout
    return content if completed.returncode == 0 else None


def _completed(
    words: Sequence[str], root: Path, stdin: bytes | None = None, encoding: str | None = None
) -> "subprocess.CompletedProcess[Any]":
    try:
        return subprocess.run(
            ["git", *words],
            cwd=root,
            input=stdin,
            capture_output=True,
            check=False,
            encoding=encoding,
        )
    except FileNotFoundError as error:
        raise GitNotRunError(
            f"cannot run git in {root.resolve()}: {error.strerror}: {error.filename}"
        ) from None


class Repository:
    """The commits and files of the repository around a folder. What was read is remembered."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self._files: dict[tuple[str, str], bytes | None] = {}

    def lines(self, *words: str) -> list[str]:
        """The lines that a git command prints; none where it fails."""
        content = printed(*words, root=self.root) or b""
        return content.decode().splitlines()

    def commit(self, revision: str) -> str | None:
        """The full name of the commit that a revision means; None where it means none."""
        words = ("rev-parse", "--verify", "--quiet", "--end-of-options", f"{revision}^{{commit}}")
        lines = self.lines(*words)
        return lines[0].strip() if lines else None

    def file(self, commit: str, path: str) -> bytes | None:
        """A file at a commit; None where the commit does not have it.

        The path begins at the project's folder, which may lie below the repository's top folder.
        """
        if (commit, path) not in self._files:
            content = printed("cat-file", "blob", f"{commit}:./{path}", root=self.root)
            self._files[commit, path] = content
        return self._files[commit, path]

    def read_ahead(self, commits: Sequence[str], paths: Sequence[str]) -> None:
        """Read these files of these commits (by their full names) with a single start of git."""
        requests = [(commit, path) for commit in dict.fromkeys(commits) for path in paths]
        if not requests:
            return
        names = "".join(f"{commit}:./{path}\n" for commit, path in requests)
        batch = printed("cat-file", "--batch", root=self.root, stdin=names.encode()) or b""
        position = 0
        for request in requests:
            end_of_line = batch.find(b"\n", position)
            if end_of_line < 0:
                return  # git stopped early: `file` asks for each of the remaining ones
            header = batch[position:end_of_line].split()
            position = end_of_line + 1
            if len(header) != 3 or header[1] != b"blob":
                self._files[request] = None  # the header is `<name> missing`
                continue
            size = int(header[2])
            self._files[request] = batch[position : position + size]
            position += size + 1
