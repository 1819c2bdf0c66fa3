"""One arm of a study: `python -m pipeline.arm studies/optimizers NAME` (see studies/README.md)."""

from pathlib import Path
from typing import Annotated

import typer

from lmlab.experiments.studies import studies
from pipeline import run_command


def arm(
    study: Annotated[Path, typer.Argument(help="The study's folder.")],
    name: Annotated[str, typer.Argument(help="A block of `arms` in its params.yaml.")],
    corpus: Path = Path("data/corpus"),
    quick: Annotated[
        bool, typer.Option(help="At the budget that the study's section `quick` gives.")
    ] = False,
) -> None:
    """Sweep, then run all seeds at the best; write STUDY/points/NAME.json."""
    target = study / "points" / f"{name}.json"
    target.parent.mkdir(exist_ok=True)
    studies.run_arm(studies.read(study, quick), name, corpus, target)


if __name__ == "__main__":
    run_command(arm)
