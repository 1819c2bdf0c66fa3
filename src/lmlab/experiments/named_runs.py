"""Finished runs by name, laid out in folders for what looks at one or takes it away."""

import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from lmlab.experiments import starting
from lmlab.experiments.stages.layout import Layout

WORKSPACE = "workspace"
"""What the run is called that lies in the project's own folders."""


@contextmanager
def laid_out(names: Sequence[str], outs: Sequence[str]) -> Iterator[dict[str, Layout]]:
    """The folders `outs` (`data/model` …) of each run, by its name; without names those of the
    workspace.

    Raises UserError for a name that is no run, and for a file that is damaged.
    """
    if not names:
        yield {WORKSPACE: Layout.below()}
        return
    with tempfile.TemporaryDirectory() as scratch:
        layouts = {}
        for number, name in enumerate(names):
            layouts[name] = Layout.below(Path(scratch, str(number)))
            run = starting.made(name, starting.project())
            for out in outs:
                run.lay_out(out, layouts[name].model.parent)
        yield layouts
