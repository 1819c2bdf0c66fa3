"""Stage `shard`: encode every split into shards of token ids."""

from lmlab.experiments.stages.shard import shard
from pipeline import run_stage

if __name__ == "__main__":
    run_stage(shard)
