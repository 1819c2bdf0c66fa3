"""Finished runs by name, laid out in folders for what looks at one or takes it away."""

import json
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from lmlab.core import params
from lmlab.core.params import Values
from lmlab.experiments import starting
from lmlab.experiments.commands import leaves
from lmlab.experiments.compare.lock import Lock
from lmlab.experiments.git import Repository
from lmlab.experiments.stages.layout import Layout

WORKSPACE = "workspace"
"""What the run is called that lies in the project's own folders."""
LOCK, MODEL, MEASURES = "dvc.lock", "data/model", "results/measures.json"


@dataclass(frozen=True)
class NamedRun:
    """A run whose folders are laid out."""

    layout: Layout
    root: Path
    """Of the repository that holds it."""
    in_commit: str = ""
    """Empty for the workspace's."""

    @cached_property
    def made_with(self) -> Values:
        """The params that the model depended on, by dotted key; none where dvc.lock is missing."""
        lock = self._file(LOCK)
        return Lock(lock.decode(), MODEL).params if lock else {}

    @cached_property
    def measures(self) -> dict[str, Any]:
        """The run's measures; empty where it was not evaluated."""
        try:
            found: dict[str, Any] = json.loads(self._file(MEASURES) or b"{}")
        except ValueError:  # what a card says is no reason to refuse a run
            return {}
        return found

    @cached_property
    def commit(self) -> str:
        """The commit that holds the run; empty where none does."""
        if self.in_commit:
            return self.in_commit
        repository = Repository(self.root)
        head = repository.commit("HEAD")
        if head is None or repository.lines("status", "--porcelain", "--", LOCK, "params.yaml"):
            return ""
        return head

    def changes_since(self) -> list[str]:
        """A line where params.yaml no longer says what the workspace's run was made with.

        Raises UserError where params.yaml cannot be read.
        """
        if self.in_commit:
            return []
        now = leaves(params.read(self.root / "params.yaml"))
        changed = [key for key, value in self.made_with.items() if now.get(key) != value]
        if not changed:
            return []
        return [
            f"this is the run of dvc.lock; params.yaml has other values since then"
            f" ({', '.join(changed[:3])}), and `dvc repro` would make another run"
        ]

    def _file(self, path: str) -> bytes | None:
        if self.in_commit:
            return Repository(self.root).file(self.in_commit, path)
        file = self.root / path
        return file.read_bytes() if file.is_file() else None


@contextmanager
def laid_out(
    names: Sequence[str], outs: Sequence[str], where_kept: Sequence[str] = ()
) -> Iterator[dict[str, NamedRun]]:
    """The folders `outs` (`data/model` …) of each run, by its name, and those of `where_kept` where
    DVC's cache has them; without names the workspace.

    Raises UserError for a name that is no run, and for a file that is damaged.
    """
    root = starting.project()
    if not names:
        yield {WORKSPACE: NamedRun(Layout.below(), Path("."))}
        return
    with tempfile.TemporaryDirectory() as scratch:
        runs = {}
        for number, name in enumerate(names):
            made = starting.made(name, root, outs)
            layout = Layout.below(Path(scratch, str(number)))
            for out in (*outs, *filter(made.is_kept, where_kept)):
                made.lay_out(out, layout.model.parent)
            runs[name] = NamedRun(layout, root, made.commit)
        yield runs
