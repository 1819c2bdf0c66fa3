"""Stage `tokenizer`: fit the tokenizer to the train split alone, or take one fitted before."""

from lmlab.experiments.stages.tokenizer import tokenizer
from pipeline import run_stage

if __name__ == "__main__":
    run_stage(tokenizer)
