"""Stage `report`: one page that shows what the run came to."""

from dataclasses import replace
from pathlib import Path

from lmlab.experiments.compare.run import workspace_run
from lmlab.experiments.report import report as library
from pipeline import run_stage


def report(target: Path = Path("results/report.html")) -> None:
    """Write TARGET from what the other stages left."""
    library.write([replace(workspace_run(), name="this run")], target)


if __name__ == "__main__":
    run_stage(report)
