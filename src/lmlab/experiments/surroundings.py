"""What surrounds the project: whose code runs, and what DVC's experiments need of Git and of the
folder.

DVC itself reports these problems late or in words that do not help. Without a name and an address
Git can make no commit, and an experiment is a commit. In a copy of the project DVC writes the path
of its cache in ASCII (3.67, `BaseLocalExecutor`).
"""

import os
from collections.abc import Iterator
from pathlib import Path

import lmlab
from lmlab.core.errors import UserError, printable
from lmlab.experiments import git

IDENTITY = (
    "`git config --global user.name 'Your Name'` and `git config --global user.email"
    " you@example.org`"
)


def faults(root: Path = Path()) -> Iterator[str]:
    """What keeps DVC from running experiments of the project in a folder: a line each, with the
    remedy.
    """
    if not _has_identity(root):
        yield f"Git does not know who you are, so DVC can keep no experiment; run {IDENTITY}"
    folder = str(root.resolve())
    if not folder.isascii():
        yield (
            f"the path {printable(folder)} is not all ASCII, so DVC cannot run experiments with"
            " --temp or from its queue (`dvc repro` and a plain `dvc exp run` work); move the"
            " project to another folder"
        )


def check_experiments(root: Path = Path()) -> None:
    """Raise UserError with the first of `faults`, before anything is queued or run."""
    for fault in faults(root):
        raise UserError(fault)


def check_experiment() -> None:
    """Raise UserError where this is a stage of an experiment that DVC could not keep at the end."""
    if "DVC_EXP_NAME" in os.environ and not _has_identity(Path()):
        raise UserError(next(faults()))


def other_project(folder: Path = Path()) -> str:
    """A line saying that the project around a folder is not the one whose code runs; otherwise
    empty.
    """
    imported = Path(lmlab.__file__).resolve().parent
    for project in (folder.resolve(), *folder.resolve().parents):
        package_file = project / "src" / "lmlab" / "__init__.py"
        if package_file.is_file():
            if package_file.parent.resolve() == imported:
                return ""
            return (
                f"note: this is the lmlab of {printable(imported.parents[1])}, not that of"
                f" {printable(project)}; to use the latter, run `make setup` and"
                " `source .venv/bin/activate` there"
            )
    return ""


def _has_identity(root: Path) -> bool:
    """Whether DVC finds a name and an address for its commits, in Git's settings or in the
    environment.
    """
    return all(
        os.environ.get(f"GIT_COMMITTER_{field.upper()}") or _setting(f"user.{field}", root)
        for field in ("name", "email")
    )


def _setting(key: str, root: Path) -> str:
    try:
        value = git.printed("config", key, root=root) or b""
    except git.GitNotRunError:
        return "unknown"  # reported where git is needed
    return value.decode(errors="replace").strip()
