"""The corpus of a study that has its own: `python -m pipeline.corpus studies/scaling` (see
studies/README.md).
"""

from pathlib import Path
from typing import Annotated

import typer

from lmlab.experiments.studies import studies
from pipeline import run_command


def corpus(study: Annotated[Path, typer.Argument(help="The study's folder.")]) -> None:
    """Write STUDY/corpus, as the study's changes to `download` and `corpora` say."""
    manifest = studies.build_corpus(studies.read(study), study / "corpus")
    for split, size in manifest.splits.items():
        typer.echo(f"{study.name}: {split}: {size.documents:,} documents, {size.bytes:,} bytes")


if __name__ == "__main__":
    run_command(corpus)
