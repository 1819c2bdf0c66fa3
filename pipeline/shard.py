"""Stage `shard`: documents become shards of token ids in Parquet."""

from pathlib import Path

from lmlab.data import shard as sharding
from lmlab.data.shard import ShardParams
from pipeline import read_params, run_stage


def shard(
    corpus: Path = Path("data/corpus"),
    tokenizer: Path = Path("data/tokenizer"),
    shards: Path = Path("data/shards"),
) -> None:
    """Encode the documents in CORPUS with TOKENIZER and write SHARDS."""
    params, _ = read_params("shard", ShardParams)
    manifest = sharding.build(params, corpus, tokenizer, shards)
    for split, contents in manifest.splits.items():
        print(f"shard: {split}: {contents.tokens:,} tokens in {len(contents.files)} shard(s)")


if __name__ == "__main__":
    run_stage(shard)
