"""The table of a study: `python -m pipeline.collect studies/optimizers` (see studies/README.md)."""

from pathlib import Path
from typing import Annotated

import typer

from lmlab.experiments.studies import findings, studies
from pipeline import run_command


def collect(study: Annotated[Path, typer.Argument(help="The study's folder.")]) -> None:
    """Write STUDY/results.csv, summary.csv and charts from its arms' points."""
    table = findings.write(studies.read(study), study)
    typer.echo(table.to_string(index=False, float_format="%.4g"))


if __name__ == "__main__":
    run_command(collect)
