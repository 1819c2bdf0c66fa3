"""Stage `evaluate`: what the model is worth, on whole splits and beside references."""

from lmlab.experiments.stages.evaluate import evaluate
from pipeline import run_stage

if __name__ == "__main__":
    run_stage(evaluate)
