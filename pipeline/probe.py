"""Stage `probe`: what the snapshots of a training run show."""

from lmlab.experiments.stages.probe import probe
from pipeline import run_stage

if __name__ == "__main__":
    run_stage(probe)
