"""What several test files share: the project's own params, and small shards made by the project's
own stages.
"""

import os
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
from hypothesis import settings
from small import PROJECT, ShardsOf

from lmlab.core import files, params, registry
from lmlab.core.params import Tree
from lmlab.data import documents
from lmlab.data import shard as sharding
from lmlab.data.shards import Shards, open_shards
from lmlab.data.splitting import write_splits
from lmlab.data.tokenizers import base as tokenizers
from lmlab.data.tokenizers.base import Tokenizer

# the same examples on every run, none kept in the working directory, and no test that fails because
# a machine is slow
settings.register_profile("lmlab", max_examples=50, derandomize=True, database=None, deadline=None)
settings.load_profile("lmlab")

# ONNX Runtime writes what machine this is into the home folder otherwise
os.environ["ORT_DISABLE_TELEMETRY"] = "1"

# torch keeps what it compiles by the code alone: two builds of it that share a folder run each
# other's kernels, which then read the wrong memory
os.environ["TORCHINDUCTOR_CACHE_DIR"] = str(PROJECT / ".scratch" / "compiled")

Texts = str | Sequence[str]


@pytest.fixture(scope="session")
def tree() -> Tree:
    """The project's own params.yaml."""
    return params.read(PROJECT / "params.yaml")


@pytest.fixture
def own_scratch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is kept of work that is stopped is kept for this test alone."""
    monkeypatch.setenv("DVC_ROOT", str(tmp_path))


@pytest.fixture
def corpus_of(tmp_path: Path) -> Callable[..., Path]:
    """A factory: `corpus_of(train, validation, test)` writes a corpus folder; each argument is a
    text or a list of them.
    """

    def make(
        train: Texts,
        validation: Texts = "To be, or not to be.\n",
        test: Texts = (),
        name: str = "corpus",
    ) -> Path:
        folder = tmp_path / name
        folder.mkdir(parents=True)
        rows = []
        for split, texts in zip(documents.SPLITS, (train, validation, test), strict=True):
            for number, text in enumerate([texts] if isinstance(texts, str) else texts):
                for part, start in enumerate(range(0, len(text), documents.PART_CHARACTERS)):
                    rows.append(
                        (
                            split,
                            number,
                            part,
                            f"{split}-{number}",
                            text[start : start + documents.PART_CHARACTERS],
                        )
                    )
        write_splits(rows, folder)
        files.write_sums(folder)
        return folder

    return make


@pytest.fixture
def shards_of(tmp_path: Path, tree: Tree, corpus_of: Callable[..., Path]) -> ShardsOf:
    """A factory: `shards_of(train, validation, test, tokenizer="character")` gives verified Shards
    and their Tokenizer.

    Each text may be a list of texts, one a document. `megabytes` and `processes` are the section
    `shard`.
    """
    made = 0

    def make(
        train: Texts,
        validation: Texts = "To be, or not to be.\n",
        test: Texts = (),
        tokenizer: str = "character",
        megabytes: float = 64.0,
        processes: int = 1,
    ) -> tuple[Shards, Tokenizer]:
        nonlocal made
        made += 1
        home = tmp_path / f"shards-of-{made}"
        corpus = corpus_of(train, validation, test, name=f"{home.name}/corpus")
        choice = registry.choose(tree, "tokenizers", tokenizer)
        fitted = tokenizers.fit(
            choice, (text for _, _, text in documents.read_parts(corpus / "train.parquet"))
        )
        tokenizers.save(choice, fitted, home / "tokenizer" / "tokenizer.json")
        shard = sharding.ShardParams(megabytes=megabytes, processes=processes)
        sharding.build(shard, corpus, home / "tokenizer", home / "shards")
        return open_shards(home / "shards", home / "tokenizer" / "tokenizer.json"), fitted

    return make
