"""`lmlab`: what is not a stage of the pipeline. Heavy imports wait until a command needs them, so
`--help` is quick.
"""

# the order in which `lmlab --help` lists them
from lmlab.cli import project, runs, results, models  # isort: skip
from lmlab.cli.front import app
from lmlab.core import errors

__all__ = ["app", "main", "models", "project", "results", "runs"]


def main() -> None:
    """The console script."""
    errors.take_over()
    app()
