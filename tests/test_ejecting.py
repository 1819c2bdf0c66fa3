"""An ejected file is the run: it needs nothing of lmlab and prints the lab's losses bit for bit."""

import ast
import io
import runpy
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

import pytest
import small
import test_training
from test_training import Corpus, rows, train

from lmlab.core import params, registry
from lmlab.core.errors import UserError
from lmlab.export.eject import eject

corpus = test_training.corpus  # the fixture
STEPS = {"snapshots": 0, "sample_every": 0, "validate_every": 0, "steps": 5, "log_every": 2}
MODELS = small.variants("models")


def tree_of(**changes: Any) -> params.Tree:
    return small.tree(**{**test_training.BASE, **STEPS, **changes})


def ejected(corpus: Corpus, tree: params.Tree, out: Path) -> str:
    """The file's text."""
    shards, tokenizer = corpus
    eject(tree, shards, tokenizer, Path("corpus"), out)
    return out.read_text(encoding="utf-8")


def printed(out: Path) -> dict[int, str]:
    """The mean losses by step that the file prints when it trains."""
    namespace = runpy.run_path(str(out), run_name="ejected")
    with redirect_stdout(io.StringIO()) as stream:
        namespace["train"]()
    return {int(line.split()[0]): line.split()[1] for line in stream.getvalue().splitlines()}


def check(corpus: Corpus, tree: params.Tree, tmp_path: Path, **changes: Any) -> None:
    """The file's losses are the log's, to the last bit, and it imports nothing of the lab."""
    code = ejected(corpus, tree, tmp_path / "ejected.py")
    imports = [node for node in ast.walk(ast.parse(code)) if isinstance(node, ast.ImportFrom)]
    assert not any((node.module or "").startswith("lmlab") for node in imports)
    assert "import lmlab" not in code
    logged = rows(train(corpus, "run", **{**STEPS, **changes}))
    expected = {row["step"]: repr(row["train_nats"]) for row in logged if "train_nats" in row}
    assert printed(tmp_path / "ejected.py") == expected


def refused(corpus: Corpus, tree: params.Tree, tmp_path: Path, **changes: Any) -> str:
    """Why the lab itself refuses the combination; empty if it does not."""
    try:
        train(corpus, "run", **{**STEPS, **changes})
    except UserError as error:
        return str(error)
    return ""


@pytest.mark.parametrize("name", registry.names("learning_rules"))
def test_every_rule(name: str, corpus: Corpus, tmp_path: Path) -> None:
    changes = {"learning_rule": name}
    if refused(corpus, {}, tmp_path, **changes):
        pytest.skip("the rule does not work with this model")
    check(corpus, tree_of(**changes), tmp_path, **changes)


@pytest.mark.parametrize("choice", MODELS, ids=small.title)
def test_every_model_and_layer(choice: registry.Choice, corpus: Corpus, tmp_path: Path) -> None:
    changes = {"model": choice.name}
    changes |= {key: inner.name for key, inner in choice.inner.items()}
    check(corpus, tree_of(**changes), tmp_path, **changes)


@pytest.mark.parametrize("name", registry.names("optimizers"))
def test_every_optimizer(name: str, corpus: Corpus, tmp_path: Path) -> None:
    changes = {"optimizer": name, "learning_rate": 0.001}
    check(corpus, tree_of(**changes), tmp_path, **changes)


@pytest.mark.parametrize(
    "changes",
    [
        {"schedule": "cosine"},
        {"schedule": "constant"},
        {"dropout": 0.3},
        {"tied": True},
        {"cautious": True},
        {"clip": 0.0},
        {"qk_norm": False},
        {"logit_soft_cap": 3.0},
        {"gradient_accumulation": 2},
        {"gradient_accumulation": 2, "dropout": 0.1, "learning_rule": "spsa"},
        {"embedding": "n_gram", "dropout": 0.3, "optimizer": "muon"},
    ],
    ids=str,
)
def test_other_choices(changes: dict[str, Any], corpus: Corpus, tmp_path: Path) -> None:
    check(corpus, tree_of(**changes), tmp_path, **changes)
