"""Stage `start`: bring the run that training goes on from, or note that there is none."""

from lmlab.experiments.stages.start import start
from pipeline import run_stage

if __name__ == "__main__":
    run_stage(start)
