"""The front door: the app that the commands belong to."""

import typer

from lmlab.core import errors

LARGEST = 2**63 - 1
"""Of whole numbers: that of params.py, which is not imported here as it takes a while."""

app = typer.Typer(
    add_completion=False,
    pretty_exceptions_enable=False,
    no_args_is_help=True,
    help="A laboratory for small language models built from scratch. The pipeline itself runs"
    " with `dvc repro`.",
)


@app.callback()
@errors.one_line
def _before_all() -> None:
    from lmlab.experiments import surroundings

    if note := surroundings.other_project():
        typer.echo(note, err=True)


def note_faults() -> None:
    """Say what is not as it should be around the project, a line each."""
    from lmlab.experiments import surroundings

    for fault in surroundings.faults():
        typer.echo(f"note: {fault}", err=True)
