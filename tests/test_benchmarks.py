"""Benchmarks run, at a size where their figures mean nothing, and write the table they promise.

All but pipeline.py, which takes minutes at any size and runs nothing that tests of the pipeline do not.
"""

import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
import small

from lmlab import parts

FOLDER = small.PROJECT / "benchmarks"
TEXT = "the king that the queen sees sleeps.\n"


def table(tmp_path: Path, name: str, *options: str) -> pd.DataFrame:
    out = tmp_path / "out.csv"
    command = [sys.executable, str(FOLDER / f"{name}.py"), *options, "--out", str(out)]
    done = subprocess.run(command, cwd=small.PROJECT, capture_output=True, text=True, check=False, timeout=600)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    return pd.read_csv(out)


def test_generation(tmp_path: Path) -> None:
    found = table(tmp_path, "generation", "--batch", "1", "--batch", "3", "--tokens", "12", "--timed", "2")
    assert found["batch"].tolist() == [1, 3]
    assert (found[["remembering", "recomputing", "ratio", "first_milliseconds"]] > 0).all(axis=None)


def test_growth(tmp_path: Path) -> None:
    found = table(tmp_path, "growth", "--turns", "1", "--values-of-each", "2")
    assert set(found["size"]) == {"width", "depth", "context", "batch", "vocabulary", "corpus"}
    assert (found.groupby("size")["order"].count() == 1).all()
    memory = found.set_index("size")["memory_order"].dropna()  # memory does not depend on how busy the machine is
    assert memory["corpus"] == pytest.approx(0, abs=0.01)
    assert 0.2 < memory["batch"] < 1.05  # what does not grow with it, gradients and the like, is there as well


def test_learning_rules(tmp_path: Path) -> None:
    sizes = ["--depth", "1", "--depth", "2", "--width", "16", "--context", "16", "--batch", "2", "--repeats", "1"]
    found = table(tmp_path, "learning_rules", *sizes).set_index("rule")
    assert set(found.index) == set(parts.names("learning_rules"))
    assert (found["relative_time"] > 0).all()
    assert (found["megabytes_depth_1"] < found["megabytes_depth_2"]).loc["backprop"]  # it keeps what every block computed


def test_sharding(tmp_path: Path) -> None:
    found = table(tmp_path, "sharding", "--megabytes", "0.2", "--tokenizer", "character", "--processes", "1")
    assert found["stage"].tolist() == ["download", "tokenizer", "shard"]
    assert 0.1 < found["megabytes"].iloc[0] < 0.4
    assert (found[["seconds", "peak_megabytes", "megabytes_per_second"]] > 0).all(axis=None)


def test_throughput(tmp_path: Path) -> None:
    both = ["--precision", "float32", "--precision", "bfloat16"]
    size = ["--turns", "1", "--steps", "1", "--threads", "1"]
    compiled = ["--compiled"] if small.COMPILES else []
    ours = ["ours", "ours, compiled"][: 1 + small.COMPILES]
    found = table(tmp_path, "throughput", "--shape", "narrow", *both, *compiled, *size)
    assert found["what"].tolist() == ["torch.nn", *ours, *ours]
    assert found["precision"].tolist() == ["float32", *["float32"] * len(ours), *["bfloat16"] * len(ours)]
    assert found["times_torch_nn"].iloc[0] == 1
    assert (found[["tokens_per_second", "gigaflops", "share_of_peak", "bytes_per_token"]] > 0).all(axis=None)


def test_time_to_quality(tmp_path: Path) -> None:
    (tmp_path / "text.txt").write_text(TEXT * 400)
    given = ["--text", str(tmp_path / "text.txt"), "--recipe", "sprint", "--seeds", "1", "--threads", "1", "--target", "3"]
    found = table(tmp_path, "time_to_quality", *given).set_index("recipe")
    assert found.index.tolist() == ["Kneser-Ney 7-gram", "sprint"]
    assert found.loc["sprint", "reached"]  # a text of one sentence
    assert found.loc["Kneser-Ney 7-gram", "nats"] < found.loc["sprint", "mixed_nats"] < found.loc["sprint", "nats"]


def test_time_to_quality_of_several_corpora_in_several_precisions(tmp_path: Path) -> None:
    given = ["--corpus", "grammar", "--corpus", "markov", "--recipe", "sprint", "--seeds", "1", "--threads", "1"]
    found = table(tmp_path, "time_to_quality", *given, "--precision", "bfloat16", "--precision", "float32")
    assert found["corpus"].tolist() == ["grammar"] * 3 + ["markov"] * 3
    assert found["precision"].fillna("").tolist() == ["", "bfloat16", "float32"] * 2
    nats = found.groupby(["corpus", "precision"])["nats"].mean().unstack()
    assert (nats["bfloat16"] - nats["float32"]).abs().max() < 0.1


def test_tokenizing(tmp_path: Path) -> None:
    found = table(tmp_path, "tokenizing", "--corpus", "grammar", "--megabytes", "0.1", "--vocabulary", "300")
    assert set(parts.names("tokenizers")) < set(found["tokenizer"])
    ours, theirs = found.set_index("tokenizer").loc[["bpe", "tiktoken, our merges"], "bytes_per_token"]
    assert ours == pytest.approx(theirs, rel=0.05)  # the same merges over nearly the same pieces
    assert (found[["megabytes_per_second", "again"]] > 0).all(axis=None)
