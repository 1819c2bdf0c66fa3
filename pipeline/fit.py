"""The scaling law of a study: `python -m pipeline.fit studies/scaling` (see studies/README.md)."""

from pathlib import Path
from typing import Annotated

import typer

from lmlab.experiments.studies import scaling_findings, studies
from pipeline import run_command


def fit(
    study: Annotated[Path, typer.Argument(help="The study's folder.")],
    quick: Annotated[
        bool, typer.Option(help="The budgets are those of the study's section `quick`.")
    ] = False,
) -> None:
    """Write STUDY/prediction.json and STUDY/fit from its arms' points."""
    found = scaling_findings.write(studies.read(study, quick))
    for key, (low, high) in found["intervals"].items():
        typer.echo(
            f"{key}: {found['law'].get(key, found['size_exponent']):.4g} ({low:.4g} to {high:.4g})"
        )
    for row in found["held_out"]:
        measured = (
            ", ".join(f"{nats:.4f}" for nats in row.get("measured", [])) or "not yet measured"
        )
        told = f"{row['nats']:.4f} ({row['low']:.4f} to {row['high']:.4f})"
        typer.echo(f"{row['arm']}, {row['tokens']:,} tokens: predicted {told}, {measured}")
    if lacking := found.get("resamples_without_a_term"):
        typer.echo(
            f"{lacking} of {found['replicates']} resamples lack an effect of size or text;"
            " intervals are without them"
        )
    if diverged := found.get("diverged"):
        typer.echo(f"left out, as they diverged: {len(diverged)} runs ({'; '.join(diverged)})")


if __name__ == "__main__":
    run_command(fit)
