"""How often the test split was opened and what was read: results/final.csv, one row an opening.

A split that is looked at again and again is no longer a test, because what is tried next follows
from what was seen. So `lmlab final` records each opening and commits it. The count covers every
version of the file that Git still has, on any branch and in the reflog, not only the file as it
stands: rows that a checkout, an `exp apply` or an edit removed come back.
"""

import csv
import io
from collections.abc import Sequence
from dataclasses import astuple, dataclass, fields
from pathlib import Path
from typing import Any

from lmlab.core.errors import UserError
from lmlab.core.files import whole_file
from lmlab.experiments import git
from lmlab.experiments.git import Repository
from lmlab.experiments.wording import quantity

FILE = "results/final.csv"
UNDER_WAY = {
    "MERGE_HEAD": "a merge",
    "CHERRY_PICK_HEAD": "a cherry-pick",
    "REVERT_HEAD": "a revert",
    "rebase-merge": "a rebase",
    "rebase-apply": "a rebase",
}
"""What Git leaves in its folder during operations in which one file cannot be committed alone."""


@dataclass(frozen=True)
class Opening:
    """One opening of a test split: a row of results/final.csv."""

    date: str
    """In UTC, such as 2026-11-28T17:05:12Z."""
    run: str
    """The name that was given."""
    commit: str
    """The commit that the name meant then; HEAD for the workspace."""
    weights_sha256: str
    corpus: str
    test_sha256: str
    """Hash of the split's text, so that the same text is one split whatever corpus it was cut from
    and whichever tokenizer encoded it.
    """
    bits_per_byte: float
    """The model's. Those of the references follow, in bits per byte too."""
    kneser_ney: float
    unigram: float
    uniform: float
    source_entropy: float | None
    """None where the exact entropy of the corpus is not known."""
    opened: int
    """How often this test split had been opened by then, this time included."""
    runs: int
    """For how many different runs, told apart by their weights."""


COLUMNS = [field.name for field in fields(Opening)]


def counted(before: Sequence[Opening], weights: str, test: str) -> tuple[int, int]:
    """How often a test split is opened if it is opened once more for these weights, and for how
    many different runs.
    """
    same_split = [opening for opening in before if opening.test_sha256 == test]
    different_weights = {weights, *(opening.weights_sha256 for opening in same_split)}
    return len(same_split) + 1, len(different_weights)


def known(root: Path = Path()) -> list[Opening]:
    """Every opening in the file as it stands or in any version that Git has, the earliest first.

    Raises UserError where the file as it stands is damaged. A damaged version in Git's history is
    passed over, as nobody can mend it and its rows stand in other versions.
    """
    path = root / FILE
    openings: dict[Opening, None] = {}
    if path.is_file():
        openings |= dict.fromkeys(_read(path.read_text(encoding="utf-8", errors="replace")))
    every_version = ("--all", "--reflog", "--full-history", "--format=%H", "--", FILE)
    for commit in git.output("log", *every_version, root=root).split():
        try:
            text = git.output("cat-file", "blob", f"{commit}:./{FILE}", root=root)
            openings |= dict.fromkeys(_read(text))
        except UserError:  # the commit that deleted the file, or a damaged version
            continue
    return sorted(openings, key=lambda opening: (opening.date, opening.opened))


def _read(text: str) -> list[Opening]:
    """The rows of a version of the file. Raises UserError naming the first damaged line."""
    rows = list(csv.reader(io.StringIO(text)))
    if not rows or rows[0] != COLUMNS:
        raise UserError(
            f"{FILE}: line 1 should be {','.join(COLUMNS)}; `git checkout {FILE}` brings the file"
            " back"
        )
    openings = []
    for line, row in enumerate(rows[1:], start=2):
        try:
            openings.append(_parse(row))
        except ValueError:
            raise UserError(
                f"{FILE}: line {line} is damaged; `git checkout {FILE}` brings the file back"
            ) from None
    return openings


def _parse(row: Sequence[str]) -> Opening:
    """Raises ValueError where the row has other columns, or no number where there should be one."""
    values: dict[str, Any] = dict(zip(COLUMNS, row, strict=True))
    for key in ("bits_per_byte", "kneser_ney", "unigram", "uniform"):
        values[key] = float(values[key])
    for key in ("opened", "runs"):
        values[key] = int(values[key])
    values["source_entropy"] = float(values["source_entropy"]) if values["source_entropy"] else None
    return Opening(**values)


def parents_of_counts(repository: Repository) -> dict[str, str]:
    """The commits that do nothing but count an opening, each with the commit before it."""
    parents: dict[str, str] = {}
    for line in repository.lines("log", "--all", "--format=%H %P", "--", FILE):
        commit, *its_parents = line.split()
        if len(its_parents) == 1 and _changes_only_the_count(repository, commit):
            parents[commit] = its_parents[0]
    return parents


def _changes_only_the_count(repository: Repository, commit: str) -> bool:
    options = ("--no-commit-id", "--name-only", "-r", "--relative")
    return " ".join(repository.lines("diff-tree", *options, commit)).split() == [FILE]


def check_can_be_kept(root: Path = Path()) -> None:
    """Raise UserError, with the remedy, where an opening could not be committed.

    It is called before anything is opened.
    """
    if not git.answers("rev-parse", "--is-inside-work-tree", root=root):
        raise UserError(
            f"{root.resolve()} is in no Git repository, and the count is kept in Git; work in a"
            " clone"
        )
    if not git.answers("rev-parse", "--verify", "--quiet", "HEAD", root=root):
        raise UserError(
            f"{root.resolve()} has no commit yet, and the count is kept in Git; `git commit` a"
            " run first"
        )
    if not git.answers("symbolic-ref", "--quiet", "HEAD", root=root):
        raise UserError(
            "HEAD is on no branch, so a commit of the count would be lost; if an experiment is"
            " running here, wait for it (DVC moves HEAD meanwhile), otherwise `git switch BRANCH`"
            " first, then name the run"
        )
    identities = ("GIT_AUTHOR_IDENT", "GIT_COMMITTER_IDENT")
    if not all(git.answers("var", identity, root=root) for identity in identities):
        raise UserError(
            "Git does not know who you are, and the count is kept in Git; run `git config"
            " user.name NAME` and `git config user.email ADDRESS` first"
        )
    for name, operation in UNDER_WAY.items():
        path = git.output("rev-parse", "--git-path", name, root=root).strip()
        if (root / path).exists():
            raise UserError(
                f"{operation} is under way, and the count is kept in Git; finish it or give it up"
                " (`git status`)"
            )
    if git.answers("ls-files", "--unmerged", root=root):
        raise UserError(
            "the index has conflicts, and the count is kept in Git; resolve them first (`git"
            " status`)"
        )


def keep(before: Sequence[Opening], opening: Opening, root: Path = Path()) -> str:
    """Write all rows to the file and commit it and nothing else; return the short commit.

    Raises UserError where Git refuses, because of a hook for example; the file is then as it was.
    """
    path = root / FILE
    previous = path.read_bytes() if path.is_file() else None
    _write(path, [*before, opening])
    message = f"Test split {times(opening)}: {opening.run}"
    try:
        git.output("add", "--force", "--", FILE, root=root)
        git.output("commit", "--quiet", "--only", "-m", message, "--", FILE, root=root)
    except UserError as error:
        if previous is None:
            path.unlink()
        else:
            path.write_bytes(previous)
        git.answers("reset", "--quiet", "--", FILE, root=root)
        raise UserError(
            f"{FILE} could not be committed, so what was read is not shown ({error})"
        ) from None
    return git.output("rev-parse", "--short", "HEAD", root=root).strip()


def _write(path: Path, openings: Sequence[Opening]) -> None:
    with whole_file(path) as partial, open(partial, "w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(COLUMNS)
        for opening in openings:
            writer.writerow(["" if value is None else value for value in astuple(opening)])


def times(opening: Opening) -> str:
    """How often the split was opened by then, such as `opened for the 2nd time, for 1 run`."""
    return f"opened for the {ordinal(opening.opened)} time, for {quantity(opening.runs, 'run')}"


def ordinal(number: int) -> str:
    """1st, 2nd, 3rd, 4th, 11th, 21st, ..."""
    ending = {1: "st", 2: "nd", 3: "rd"}.get(number % 10, "th")
    if number % 100 in (11, 12, 13):
        ending = "th"
    return f"{number:,}{ending}"
