"""Stage `download`: get the corpus, clean it, split it."""

from lmlab.experiments.stages.download import download
from pipeline import run_stage

if __name__ == "__main__":
    run_stage(download)
