"""The table of a study: `python -m pipeline.collect studies/optimizers` (see studies/README.md)."""

from pathlib import Path
from typing import Annotated

import typer

from lmlab import studies
from pipeline import run_command


def collect(study: Annotated[Path, typer.Argument(help="The study's folder.")]) -> None:
    """Write STUDY/results.csv from its arms' points."""
    table = studies.collect(study / "points", study / "results.csv")
    typer.echo(f"{study / 'results.csv'}: {len(table)} runs")


if __name__ == "__main__":
    run_command(collect)
