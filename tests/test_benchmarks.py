"""Benchmarks run, at a size where their figures mean nothing, and write the table they promise.

All but pipeline.py and overhead.py, which take minutes at any size and run nothing that tests of
the pipeline do not.
"""

import importlib
import random
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pandas as pd
import pytest
import small
import torch
import typer
from typer.testing import CliRunner

from lmlab.core import params, registry

pytestmark = pytest.mark.pipeline

FOLDER = small.PROJECT / "benchmarks"
ONE_TABLE = {
    *("generation", "growth", "learning_rules", "processes", "sharding", "stacked_seeds"),
    "tokenizing",
}
"""Benchmarks with one published table, whose columns no option adds to."""
TEXT = "the king that the queen sees sleeps.\n"


@pytest.fixture(autouse=True)
def where_a_person_stands(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """In the project's top folder, benchmarks/ on the path of imports as for a script there; torch
    is then as before.
    """
    threads = torch.get_num_threads()
    monkeypatch.chdir(small.PROJECT)
    monkeypatch.syspath_prepend(str(FOLDER))
    yield
    torch.set_num_threads(threads)
    torch.use_deterministic_algorithms(False)


def smaller(monkeypatch: pytest.MonkeyPatch, module: ModuleType, **changes: Any) -> None:
    """The project's params as this module reads them, with options set wherever a part has one of
    that name.
    """
    lowered, read = small.tree(**changes), params.read
    monkeypatch.setattr(params, "read", lambda *path: read(*path) if path else lowered)


def table(tmp_path: Path, module: ModuleType, *options: str) -> pd.DataFrame:
    out = tmp_path / "out.csv"
    command = typer.Typer()
    command.command()(module.main)
    done = CliRunner().invoke(command, [*options, "--out", str(out)], catch_exceptions=False)
    assert done.exit_code == 0, done.output[-2000:]
    found = pd.read_csv(out)
    if module.__name__ in ONE_TABLE:
        published = pd.read_csv(FOLDER / "results" / f"{module.__name__}.csv", nrows=0)
        assert list(found) == list(published), "the command gives the published table"
    return found


def benchmark(name: str) -> ModuleType:
    return importlib.import_module(name)


def test_generation(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    module = benchmark("generation")
    smaller(monkeypatch, module, context=8)
    found = table(
        tmp_path, module, "--batch", "1", "--batch", "3", "--tokens", "12", "--timed", "2"
    )
    assert found["batch"].tolist() == [1, 3]
    assert (found[["remembering", "recomputing", "ratio", "first_milliseconds"]] > 0).all(axis=None)


def test_growth(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    module = benchmark("growth")
    smaller(monkeypatch, module, documents=2, sentences=20)
    monkeypatch.setattr(module.recipes, "read", lambda name: {})  # whose tables are large
    few = {
        "width": [16, 32],
        "depth": [1, 2],
        "context": [8, 16],
        "batch": [32, 64],
        "vocabulary_size": [64, 128],
    }
    monkeypatch.setattr(
        module,
        "SIZES",
        {size: (key, few[size], *rest) for size, (key, _, *rest) in module.SIZES.items()},
    )
    fixed = {
        "models.transformer.width": 16,
        "models.transformer.depth": 2,
        "train.context": 16,
        "train.batch": 4,
    }
    monkeypatch.setattr(module, "FIXED", fixed)
    monkeypatch.setattr(module, "CORPUS", [2, 4])
    found = table(tmp_path, module, "--turns", "1", "--values-of-each", "2")
    assert set(found["size"]) == {"width", "depth", "context", "batch", "vocabulary_size", "corpus"}
    assert (found.groupby("size")["order"].count() == 1).all()
    memory = found.set_index("size")[
        "memory_order"
    ].dropna()  # memory does not depend on how busy the machine is
    assert memory["corpus"] == pytest.approx(0, abs=0.01)
    assert (
        0.2 < memory["batch"] < 1.05
    )  # what does not grow with it, gradients and the like, is there as well


def test_learning_rules(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    some = [
        "backprop",
        *random.Random(small.DRAW).sample(
            sorted({*registry.names("learning_rules")} - {"backprop"}), 6
        ),
    ]
    names = registry.names
    monkeypatch.setattr(
        registry, "names", lambda kind: some if kind == "learning_rules" else names(kind)
    )
    sizes = ["--width", "16", "--context", "16", "--batch", "2", "--repeats", "1"]
    found = table(tmp_path, benchmark("learning_rules"), *sizes).set_index("rule")
    assert found.index.tolist() == some
    assert (found["relative_time"] > 0).all()
    assert (found["megabytes_depth_2"] < found["megabytes_depth_4"]).loc[
        "backprop"
    ]  # it keeps what every block computed


def test_sharding(tmp_path: Path) -> None:
    sizes = ["--megabytes", "0.2", "--tokenizer", "character", "--processes", "1"]
    found = table(tmp_path, benchmark("sharding"), *sizes)
    assert found["stage"].tolist() == ["download", "tokenizer", "shard"]
    assert 0.1 < found["megabytes"].iloc[0] < 0.4
    assert (found[["seconds", "peak_megabytes", "megabytes_per_second"]] > 0).all(axis=None)


@pytest.mark.parametrize("compiled", [False, True])
def test_throughput(compiled: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    module = benchmark("throughput")
    smaller(monkeypatch, module, corpus="grammar", documents=20, sentences=20)
    monkeypatch.setitem(
        module.SHAPES, "narrow", {"width": 16, "depth": 1, "heads": 2, "context": 8, "batch": 2}
    )
    monkeypatch.setattr(module, "PEAK_ROWS", 32)
    monkeypatch.setattr(
        torch, "compile", lambda forward, **_: forward
    )  # what it makes is the matter of test_compiling.py
    precisions = ["float32"] if compiled else ["float32", "bfloat16"]
    size = ["--turns", "1", "--steps", "1", "--threads", "1", *["--compiled"][: int(compiled)]]
    found = table(
        tmp_path,
        module,
        "--shape",
        "narrow",
        *(f"--precision={name}" for name in precisions),
        *size,
    )
    ours = ["ours", "ours, compiled"][: 1 + compiled]
    assert found["what"].tolist() == ["torch.nn", *ours * len(precisions)]
    assert found["precision"].tolist() == ["float32", *(name for name in precisions for _ in ours)]
    assert found["times_torch_nn"].iloc[0] == 1
    assert (found[["tokens_per_second", "gigaflops", "share_of_peak", "bytes_per_token"]] > 0).all(
        axis=None
    )


def small_recipes(monkeypatch: pytest.MonkeyPatch, steps: int) -> ModuleType:
    """The race, with every recipe a small transformer that is trained for so many steps."""
    module = benchmark("time_to_quality")
    quick = {
        "train.steps": steps,
        "train.batch": 8,
        "train.context": 32,
        "optimizers.adamw.learning_rate": 0.01,
    }
    monkeypatch.setattr(module.recipes, "read", lambda name: quick)
    smaller(monkeypatch, module, documents=20, sentences=20, stride=16)
    return module


def test_time_to_quality(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "text.txt").write_text(TEXT * 400)
    given = [
        "--text",
        str(tmp_path / "text.txt"),
        "--recipe",
        "sprint",
        "--seeds",
        "1",
        "--threads",
        "1",
        "--target",
        "3",
    ]
    found = table(tmp_path, small_recipes(monkeypatch, steps=100), *given).set_index("recipe")
    assert found.index.tolist() == ["Kneser-Ney 7-gram", "sprint"]
    assert found.loc["sprint", "reached"]  # a text of one sentence
    assert (
        found.loc["Kneser-Ney 7-gram", "nats"]
        < found.loc["sprint", "mixed_nats"]
        < found.loc["sprint", "nats"]
    )


def test_time_to_quality_of_several_corpora_in_several_precisions(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = [
        "--corpus",
        "grammar",
        "--corpus",
        "markov",
        "--recipe",
        "sprint",
        "--seeds",
        "1",
        "--threads",
        "1",
    ]
    module = small_recipes(monkeypatch, steps=20)
    found = table(tmp_path, module, *given, "--precision", "bfloat16", "--precision", "float32")
    assert found["corpus"].tolist() == ["grammar"] * 3 + ["markov"] * 3
    assert found["precision"].fillna("").tolist() == ["", "bfloat16", "float32"] * 2
    nats = found.groupby(["corpus", "precision"])["nats"].mean().unstack()
    assert (nats["bfloat16"] - nats["float32"]).abs().max() < 0.1


def test_tokenizing(tmp_path: Path) -> None:
    sizes = ["--corpus", "grammar", "--megabytes", "0.1", "--vocabulary-size", "300"]
    found = table(tmp_path, benchmark("tokenizing"), *sizes)
    assert set(registry.names("tokenizers")) < set(found["tokenizer"])
    ours, theirs = found.set_index("tokenizer").loc[
        ["bpe", "tiktoken, our merges"], "bytes_per_token"
    ]
    assert ours == pytest.approx(theirs, rel=0.05)  # the same merges over nearly the same pieces
    assert (found[["megabytes_per_second", "again"]] > 0).all(axis=None)


def test_processes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    module = benchmark("processes")
    small_ = {"models.transformer.width": 16, "models.transformer.depth": 1, "train.context": 8}
    monkeypatch.setattr(module, "SETTINGS", {**module.SETTINGS, **small_})
    rules = ["--rule", "backprop", "--rule", "evolution_strategies"]
    found = table(tmp_path, module, *rules, "--members", "3", "--steps", "2").set_index("rule")
    assert found["same_bytes"].all()
    assert found.loc["evolution_strategies", "bytes"] == 4 * 4  # seven losses in four turns
    assert found.loc["backprop", "of_backprop"] == 1
    assert (found["times_faster"] > 0).all()


def test_stacked_seeds(tmp_path: Path) -> None:
    sizes = ["--width", "16", "--seeds", "2", "--threads", "1", "--context", "8", "--turns", "1"]
    found = table(tmp_path, benchmark("stacked_seeds"), *sizes)
    assert found["largest_difference"].max() < 1e-6, "the same gradients to rounding"
    assert (found["times_faster"] > 0).all()


MODEL = """
from dataclasses import dataclass

import torch
from torch import nn


@dataclass
class GPTConfig:
    n_layer: int
    n_head: int
    n_embd: int
    block_size: int
    vocab_size: int
    dropout: float
    bias: bool


class GPT(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.table = nn.Embedding(config.vocab_size, config.vocab_size)

    def configure_optimizers(self, decay, rate, betas, device):
        return torch.optim.AdamW(self.parameters(), rate, betas, weight_decay=decay)

    def forward(self, tokens, targets):
        logits = self.table(tokens)
        return logits, nn.functional.cross_entropy(logits.flatten(0, 1), targets.flatten())
"""
"""What a clone of nanoGPT offers, as a table of pairs."""


def test_gpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With a processor in the place of a GPU, which then is like itself."""
    module = benchmark("gpu")
    (tmp_path / "model.py").write_text(MODEL)
    (tmp_path / "text.txt").write_text(TEXT * 400)
    quick = {"train.steps": 8, "train.batch": 2, "train.context": 16}
    monkeypatch.setattr(module.recipes, "read", lambda name: quick)
    monkeypatch.setattr(torch, "compile", lambda module, **_: module)
    names = registry.names
    few = {
        "models": ["lstm", "transformer"],
        "learning_rules": ["backprop", "spsa"],
        "optimizers": ["adamw", "muon"],
    }
    monkeypatch.setattr(registry, "names", lambda kind: few.get(kind, names(kind)))
    smaller(monkeypatch, module, **{key.split(".")[1]: quick[key] for key in quick})
    given = ["--text", str(tmp_path / "text.txt"), "--nanogpt", str(tmp_path)]
    found = table(tmp_path, module, *given, "--device", "cpu", "--small").set_index("check")
    assert set(found["kind"]) == {"repeats", "race", "speed", "alike"}
    assert "failed" not in found or found["failed"].isna().all(), found["failed"].dropna().tolist()
    repeats = found[found["kind"] == "repeats"]
    assert (repeats[["same_twice", "same_resumed"]] == True).all(axis=None)  # noqa: E712 (of a table)
    assert (found.loc[found["kind"] == "alike", "largest_difference"] == 0).all()
    assert (found.loc[found["kind"] == "speed", "tokens_per_second"] > 0).all()
    assert (found.loc[found["kind"] == "race", ["seconds", "nats"]] > 0).all(axis=None)
    assert "nanoGPT" in found.index
