"""The stages of dvc.yaml, one module each: `python -m pipeline.train` reads params.yaml, calls
lmlab, writes outputs.

A queued or temporary experiment runs in a copy of the project while an editable install points at
the original. So the `src` beside this folder goes first, and anything else that answers to `lmlab`
is refused.
"""

import functools
import inspect
import multiprocessing
import sys
import time
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any, TypeVar

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

    from lmlab.core import files, lifeline, params, registry
except ModuleNotFoundError as missing:
    raise errors.UserError(
        f"{sys.executable} lacks the package {missing.name}; run `source .venv/bin/activate`"
        " first (`make setup` makes it)"
    ) from None

P = TypeVar("P", bound=params.Params)


def read_params(section: str, kind: type[P]) -> tuple[P, dict[str, registry.Choice]]:
    """A section of params.yaml, and the parts its keys name."""
    tree = params.read()
    values = params.section(tree, section, kind)
    return values, registry.choices(tree, section, values)


def run_stage(command: Callable[..., dict[str, Any] | None]) -> None:
    """Run a stage's command as a command line."""
    run_command(staged(command))


def staged(command: Callable[..., dict[str, Any] | None]) -> Callable[..., None]:
    """A stage's command with what belongs to every stage: check all params and folders first, and
    note the time.

    Modules that cannot change what the stage writes are loaded by name, so that they are none of
    its dependencies.
    """
    defaults = {
        name: value.default for name, value in inspect.signature(command).parameters.items()
    }

    @functools.wraps(command)
    def stage(**paths: Any) -> None:
        started = time.perf_counter()
        import_module("lmlab.experiments.surroundings").check_experiment()
        tree, name = params.read(), command.__name__
        import_module("lmlab.experiments.preflight").check(tree)
        for path in (defaults | paths).values():
            files.check_folder(path.parent if path.suffix else path)
        import_module("lmlab.experiments.remarks").say(tree, name)
        if import_module("lmlab.experiments.runcache").restored():
            print(
                f"{name}: this was done before on this machine: outputs taken from DVC's run-cache",
                flush=True,
            )
            return
        facts = command(**paths) or {}
        import_module("lmlab.experiments.runcache").keep()
        import_module("lmlab.experiments.timing").note(
            name, {"seconds": time.perf_counter() - started, **facts}
        )

    return stage


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
