"""How often the test split was opened, and what was read there: results/final.csv, a row for each
time, kept in Git.

A split that is looked at again and again is no test any more, since what is tried next follows from
what was seen. So `lmlab final` writes down each time and commits it. The count is taken over every
version of the file that Git still has, on any branch and in the reflog, not over the file as it
lies: rows that a checkout, an `exp apply` or an edit took away come back.
"""

import csv
import io
from collections.abc import Sequence
from dataclasses import astuple, dataclass, fields
from pathlib import Path
from typing import Any

from lmlab.core.errors import UserError
from lmlab.core.files import whole_file
from lmlab.experiments.commands import git
from lmlab.experiments.wording import quantity

FILE = "results/final.csv"
UNDER_WAY = {
    "MERGE_HEAD": "a merge",
    "CHERRY_PICK_HEAD": "a cherry-pick",
    "REVERT_HEAD": "a revert",
    "rebase-merge": "a rebase",
    "rebase-apply": "a rebase",
}
"""What Git leaves in its folder while something is under way in which a commit of one file alone is
not possible.
"""


@dataclass(frozen=True)
class Opening:
    """One look at a test split: a row of results/final.csv."""

    date: str
    """In UTC, such as 2026-11-28T17:05:12Z."""
    run: str
    """As it was named."""
    commit: str
    """That the name meant then; of the workspace, HEAD's."""
    weights_sha256: str
    corpus: str
    test_sha256: str
    """Of the split's text, so that the same text counts as one whatever it was cut from and by
    which tokenizer.
    """
    bits_per_byte: float
    """Of the model, as are those of the references that follow."""
    kneser_ney: float
    unigram: float
    uniform: float
    source_entropy: float | None
    """None where the exact entropy of the corpus is not known."""
    opened: int
    """How often this test split was opened by then, this time included."""
    runs: int
    """For how many different runs, by their weights."""


COLUMNS = [field.name for field in fields(Opening)]


def counted(before: Sequence[Opening], weights: str, test: str) -> tuple[int, int]:
    """How often a test split is opened if it is opened once more for these weights, and for how
    many different runs.
    """
    same = [one for one in before if one.test_sha256 == test]
    return len(same) + 1, len({weights, *(one.weights_sha256 for one in same)})


def known(root: Path = Path()) -> list[Opening]:
    """Every opening that Git or the file as it lies tells of, the earliest first.

    Raises UserError where the file as it lies is damaged; a damaged version in Git's history is
    passed over, as nobody can mend it, and its rows stand in other versions.
    """
    path = root / FILE
    found = dict.fromkeys(
        _read(path.read_text(encoding="utf-8", errors="replace")) if path.is_file() else []
    )
    for commit in git(
        "-C", str(root), "log", "--all", "--reflog", "--full-history", "--format=%H", "--", FILE
    ).split():
        try:
            found |= dict.fromkeys(
                _read(git("-C", str(root), "cat-file", "blob", f"{commit}:./{FILE}"))
            )
        except UserError:  # the commit that took it away, or a damaged one
            continue
    return sorted(found, key=lambda one: (one.date, one.opened))


def _read(text: str) -> list[Opening]:
    """The rows of a version of the file. Raises UserError naming the line that is none."""
    rows = list(csv.reader(io.StringIO(text)))
    if not rows or rows[0] != COLUMNS:
        raise UserError(
            f"{FILE}: line 1 should be {','.join(COLUMNS)}; `git checkout {FILE}` brings the file"
            " back"
        )
    found = []
    for number, row in enumerate(rows[1:], start=2):
        try:
            values: dict[str, Any] = dict(zip(COLUMNS, row, strict=True))
            numbers = {
                key: float(values[key])
                for key in ("bits_per_byte", "kneser_ney", "unigram", "uniform")
            }
            entropy = float(values["source_entropy"]) if values["source_entropy"] else None
            counts = {key: int(values[key]) for key in ("opened", "runs")}
        except ValueError:
            raise UserError(
                f"{FILE}: line {number} is damaged; `git checkout {FILE}` brings the file back"
            ) from None
        found.append(Opening(**{**values, **numbers, **counts, "source_entropy": entropy}))
    return found


def check_can_be_kept(root: Path = Path()) -> None:
    """Raise UserError, in one line with the remedy, where an opening could not be committed: before
    anything is opened.
    """
    if not _gives(root, "rev-parse", "--is-inside-work-tree"):
        raise UserError(
            f"{root.resolve()} is in no Git repository, and the count is kept in Git; work in a"
            " clone"
        )
    if not _gives(root, "rev-parse", "--verify", "--quiet", "HEAD"):
        raise UserError(
            f"{root.resolve()} has no commit yet, and the count is kept in Git; `git commit` a"
            " run first"
        )
    if not _gives(root, "symbolic-ref", "--quiet", "HEAD"):
        raise UserError(
            "HEAD is on no branch, so a commit of the count would be lost; wait if an experiment"
            " is running here (DVC"
            " moves HEAD meanwhile), else `git switch BRANCH` first, then name the run"
        )
    if not (_gives(root, "var", "GIT_AUTHOR_IDENT") and _gives(root, "var", "GIT_COMMITTER_IDENT")):
        raise UserError(
            "Git does not know who you are, and the count is kept in Git; run `git config"
            " user.name NAME` and"
            " `git config user.email ADDRESS` first"
        )
    for name, what in UNDER_WAY.items():
        if (root / git("-C", str(root), "rev-parse", "--git-path", name).strip()).exists():
            raise UserError(
                f"{what} is under way, and the count is kept in Git; finish it or give it up"
                " (`git status`)"
            )
    if git("-C", str(root), "ls-files", "--unmerged").strip():
        raise UserError(
            "the index has conflicts, and the count is kept in Git; resolve them first (`git"
            " status`)"
        )


def _gives(root: Path, *words: str) -> bool:
    """Whether a git command has an answer."""
    try:
        return bool(git("-C", str(root), *words).strip())
    except UserError:
        return False


def keep(before: Sequence[Opening], opening: Opening, root: Path = Path()) -> str:
    """Write all rows to the file and commit it, and nothing else; return the commit, shortened.

    Raises UserError where Git refuses (a hook, say); the file is then as it was.
    """
    path = root / FILE
    old = path.read_bytes() if path.is_file() else None
    _write(path, [*before, opening])
    times = f"opened for the {ordinal(opening.opened)} time, for {quantity(opening.runs, 'run')}"
    try:
        git("-C", str(root), "add", "--force", "--", FILE)
        git(
            "-C",
            str(root),
            "commit",
            "--quiet",
            "--only",
            "-m",
            f"Test split {times}: {opening.run}",
            "--",
            FILE,
        )
    except UserError as error:
        if old is None:
            path.unlink()
        else:
            path.write_bytes(old)
        _gives(root, "reset", "--quiet", "--", FILE)
        raise UserError(
            f"{FILE} could not be committed, so what was read is not shown ({error})"
        ) from None
    return git("-C", str(root), "rev-parse", "--short", "HEAD").strip()


def _write(path: Path, rows: Sequence[Opening]) -> None:
    with whole_file(path) as partial, open(partial, "w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(COLUMNS)
        writer.writerows(["" if value is None else value for value in astuple(row)] for row in rows)


def ordinal(number: int) -> str:
    """1st, 2nd, 3rd, 4th, 11th, 21st, ..."""
    ending = (
        "th" if number % 100 in (11, 12, 13) else {1: "st", 2: "nd", 3: "rd"}.get(number % 10, "th")
    )
    return f"{number:,}{ending}"
