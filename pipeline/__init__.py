"""The stages of dvc.yaml, one module each: `python -m pipeline.train` reads params.yaml, calls
lmlab, writes outputs.

A queued or temporary experiment runs in a copy of the project while an editable install points at
the original. So the `src` beside this folder goes first, and anything else that answers to `lmlab`
is refused.
"""

import functools
import multiprocessing
import os
import sys
import time
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "src"))

import lmlab  # noqa: E402
from lmlab.core import errors  # noqa: E402

if not Path(lmlab.__file__).is_relative_to(ROOT):
    raise ImportError(
        f"lmlab was imported from {lmlab.__file__}, not from {ROOT / 'src'}: run from the"
        " project's folder"
    )
if multiprocessing.parent_process() is None:
    errors.take_over()

try:
    import typer

    from lmlab.core import files, lifeline, params
    from lmlab.experiments.stages.layout import Layout
except ModuleNotFoundError as missing:
    raise errors.UserError(
        f"{sys.executable} lacks the package {missing.name}; run `source .venv/bin/activate`"
        " first (`make setup` makes it)"
    ) from None

Stage = Callable[[params.Tree, Layout], dict[str, Any] | None]
"""A stage's function; what it returns is noted beside the seconds that it took."""


def run_stage(stage: Stage) -> None:
    """Run a stage as a command line."""
    run_command(staged(stage))


def staged(stage: Stage) -> Callable[..., None]:
    """A stage with what belongs to every stage: check params and folders first, and note the time.

    Modules that cannot change what a stage writes are loaded by name, so that they are none of its
    dependencies.
    """

    @functools.wraps(stage, assigned=("__name__", "__doc__"), updated=())
    def command(data: Path = Path("data"), results: Path = Path("results")) -> None:
        start = time.perf_counter()
        experiment = "lmlab.experiments"
        import_module(f"{experiment}.surroundings").check_experiment()
        tree, name = params.read(), stage.__name__
        import_module(f"{experiment}.preflight").check(tree)
        if is_helper():
            stage(tree, Layout.below(data, results))
            return
        for folder in (data, results):
            files.check_folder(folder)
        import_module(f"{experiment}.remarks").say(tree, name)
        runcache = import_module(f"{experiment}.runcache")
        if runcache.restored():
            print(
                f"{name}: this was done before on this machine: outputs taken from DVC's run-cache",
                flush=True,
            )
            return
        facts = stage(tree, Layout.below(data, results)) or {}
        runcache.keep()
        seconds = time.perf_counter() - start
        import_module(f"{experiment}.timing").note(name, {"seconds": seconds, **facts})

    del command.__wrapped__  # typer reads the signature of what it is given
    return command


def is_helper() -> bool:
    """Whether torchrun has started this process beside another one, which says and writes all."""
    return int(os.environ.get("RANK") or 0) > 0


def run_command(command: Callable[..., None]) -> None:
    """Run a command line: stop if the parent dies, and tell mistakes in one line."""

    @functools.wraps(command)
    @errors.one_line
    def guarded(**arguments: Any) -> None:
        lifeline.stop_with_parent()
        command(**arguments)

    app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
    app.command()(guarded)
    app()
