"""Stage `train`: a model learns from the train split's shards."""

from lmlab.experiments.stages.train import train
from pipeline import run_stage

if __name__ == "__main__":
    run_stage(train)
