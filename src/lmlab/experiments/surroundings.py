"""What is around the project: whose code runs, and what DVC's experiments need of Git and of the
folder.

DVC itself tells these late, or in words that do not help: without a name and an address Git can
make no commit, which is what an experiment is; and in a copy of the project DVC writes the path of
its cache in ASCII (3.67, `BaseLocalExecutor`).
"""

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import lmlab
from lmlab.core.errors import UserError, printable

IDENTITY = (
    "`git config --global user.name 'Your Name'` and `git config --global user.email"
    " you@example.org`"
)


def faults(root: Path = Path()) -> Iterator[str]:
    """What keeps DVC from running experiments of the project in a folder, a line each that says
    what to do.
    """
    if not _has_identity(root):
        yield f"Git does not know who you are, so DVC can keep no experiment; run {IDENTITY}"
    folder = str(root.resolve())
    if not folder.isascii():
        yield (
            f"the path {printable(folder)} is not all ASCII, and in such a one DVC cannot run"
            " experiments with --temp or from"
            " its queue (`dvc repro` and a plain `dvc exp run` work); move the project to another"
            " folder"
        )


def check_experiments(root: Path = Path()) -> None:
    """Raise UserError with the first of `faults`, before anything is queued or run."""
    for fault in faults(root):
        raise UserError(fault)


def check_experiment() -> None:
    """Raise UserError where this is a stage of an experiment that DVC could not keep in the end."""
    if "DVC_EXP_NAME" in os.environ and not _has_identity(Path()):
        raise UserError(next(faults()))


def other_project(start: Path = Path()) -> str:
    """A line to say where the project around a folder is another than the one whose code runs; else
    empty.
    """
    imported = Path(lmlab.__file__).resolve().parent
    for folder in (start.resolve(), *start.resolve().parents):
        there = folder / "src" / "lmlab" / "__init__.py"
        if there.is_file():
            if there.parent.resolve() == imported:
                return ""
            return (
                f"note: this is the lmlab of {printable(imported.parents[1])}, not that of"
                f" {printable(folder)}; for the latter run"
                " `make setup` and `source .venv/bin/activate` there"
            )
    return ""


def _has_identity(root: Path) -> bool:
    """Whether DVC finds a name and an address for its commits: in Git's settings, or in the
    environment.
    """
    return all(
        os.environ.get(f"GIT_COMMITTER_{what.upper()}") or _setting(f"user.{what}", root)
        for what in ("name", "email")
    )


def _setting(key: str, root: Path) -> str:
    try:
        done = subprocess.run(
            ["git", "config", key], cwd=root, capture_output=True, text=True, check=False
        )
    except FileNotFoundError:
        return "unknown"  # no Git: that is told where it is needed
    return done.stdout.strip()
