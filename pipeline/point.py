"""One point of a study: `python -m pipeline.point studies/optimizers NAME key=value ...` (see studies/README.md)."""

from pathlib import Path
from typing import Annotated

import typer

from lmlab import studies
from pipeline import run_command


def point(
    study: Annotated[Path, typer.Argument(help="The study's folder.")],
    name: Annotated[str, typer.Argument(help="What to call the point.")],
    changes: Annotated[list[str] | None, typer.Argument(help="key=value, or key*=factor, each.")] = None,
    corpus: Path = Path("data/corpus"),
) -> None:
    """Train and evaluate with the study's params and these CHANGES; write STUDY/points/NAME.json."""
    studies.write_point(study, name, studies.parsed(changes or []), corpus)


if __name__ == "__main__":
    run_command(point)
