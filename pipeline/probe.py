"""Stage `probe`: what the snapshots of a training run show."""

from pathlib import Path

from lmlab.core import params
from lmlab.data.shards import open_shards
from lmlab.data.tokenizers import base as tokenizers
from lmlab.evaluation import probe as probing
from lmlab.evaluation.probe import ProbeParams
from pipeline import read_params, run_stage


def probe(
    shards: Path = Path("data/shards"),
    tokenizer: Path = Path("data/tokenizer"),
    snapshots: Path = Path("data/snapshots"),
    probes: Path = Path("data/probes"),
) -> dict[str, float]:
    """Let the probes that `probe.probes` lists look at SNAPSHOTS with validation text of SHARDS;
    write PROBES.
    """
    values, _ = read_params("probe", ProbeParams)
    opened = open_shards(shards, tokenizer / "tokenizer.json")
    fitted = tokenizers.load(tokenizer / "tokenizer.json")
    chosen = probing.chosen(params.read(), values)
    readings = probing.look(values, chosen, opened, fitted, snapshots, probes)
    return readings.timings()


if __name__ == "__main__":
    run_stage(probe)
