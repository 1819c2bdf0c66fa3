"""Stage `report`: one page that shows what the run came to."""

from lmlab.experiments.stages.report import report
from pipeline import run_stage

if __name__ == "__main__":
    run_stage(report)
