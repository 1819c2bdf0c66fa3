"""Any single change reruns just the stages it affects."""

from typing import Any

import pytest

pytestmark = pytest.mark.pipeline

ALL = {"download", "tokenizer", "shard", "train", "evaluate"}
FROM_TOKENIZER = ALL - {"download"}

PARAMS: list[tuple[str, Any, set[str]]] = [
    # each stage's own section
    ("download.validation", 0.2, ALL),
    ("tokenizer.name", "byte", FROM_TOKENIZER),
    ("shard.megabytes", 32.0, {"shard"}),  # as many shards as before: what follows stays valid
    ("train.seed", 1, {"train", "evaluate"}),
    ("evaluate.temperature", 0.5, {"evaluate"}),
    # options of the parts in use, and another part chosen
    ("corpora.grammar.seed", 1, ALL),
    ("models.transformer.width", 32, {"train", "evaluate"}),
    ("layers.attention.multi_head.heads", 4, {"train", "evaluate"}),
    ("models.transformer.feed_forward", "swiglu", {"train", "evaluate"}),
    ("optimizers.adamw.learning_rate", 0.001, {"train", "evaluate"}),
    ("schedules.linear.final", 0.5, {"train", "evaluate"}),
    ("parametrisations.standard.power", 0.0, {"train", "evaluate"}),
    # options of parts that are not in use
    ("corpora.markov.order", 3, set()),
    ("corpora.shakespeare.plays", "all", set()),
    ("layers.feed_forward.swiglu.expansion", 3.0, set()),
    ("schedules.cosine.final", 0.2, set()),
    ("models.lstm.layers", 2, set()),
    ("optimizers.muon.momentum", 0.9, set()),
    ("tokenizers.bpe.vocabulary", 400, set()),
]

CODE: list[tuple[str, set[str]]] = [
    # each stage's script: its bytes changed, its outputs did not, so what follows stays valid
    ("pipeline/download.py", {"download"}),
    ("pipeline/tokenizer.py", {"tokenizer"}),
    ("pipeline/shard.py", {"shard"}),
    ("pipeline/train.py", {"train"}),
    ("pipeline/evaluate.py", {"evaluate"}),
    # the parts in use
    ("src/lmlab/corpora/grammar.py", {"download"}),
    ("src/lmlab/tokenizers/character.py", FROM_TOKENIZER),
    ("src/lmlab/layers/feed_forward/relu_squared.py", {"train", "evaluate"}),
    ("src/lmlab/learning_rules/backprop.py", {"train"}),
    ("src/lmlab/schedules/linear.py", {"train"}),
    ("src/lmlab/evaluation/kneser_ney.py", {"evaluate"}),
]

UNUSED_CODE = [
    "README.md",
    "src/lmlab/corpora/markov.py",
    "src/lmlab/tokenizers/bpe.py",
    "src/lmlab/tokenizers/byte.py",
    "src/lmlab/layers/attention/latent.py",
    "src/lmlab/models/lstm.py",
    "src/lmlab/optimizers/muon.py",
    "src/lmlab/studies.py",
    "src/lmlab/layers/feed_forward/swiglu.py",
    "src/lmlab/layers/normalisation/layer_norm.py",
    "src/lmlab/layers/position/absent.py",
    "src/lmlab/schedules/cosine.py",
    "src/lmlab/cli.py",
    "src/lmlab/preflight.py",
]


@pytest.mark.parametrize(("key", "value", "expected"), PARAMS, ids=[key for key, _, _ in PARAMS])
def test_a_changed_param_reruns_the_stages_it_affects(workspace: Any, key: str, value: Any, expected: set[str]) -> None:
    workspace.set({key: value})
    assert workspace.reruns("--no-run-cache") == expected


@pytest.mark.parametrize(("source", "expected"), CODE, ids=[source for source, _ in CODE])
def test_changed_code_reruns_the_stages_that_use_it(workspace: Any, source: str, expected: set[str]) -> None:
    workspace.touch_code(source)
    assert workspace.reruns("--no-run-cache") == expected


def test_code_that_the_run_does_not_use_reruns_nothing(workspace: Any) -> None:
    for source in UNUSED_CODE:
        workspace.touch_code(source)
    workspace.path("src/lmlab/schedules/newly_added.py").write_text('"""A part nobody chose."""\n')
    assert workspace.reruns("--no-run-cache") == set()


def test_comments_key_order_and_spelling_of_numbers_rerun_nothing(workspace: Any) -> None:
    from ruamel.yaml import YAML

    path = workspace.path("params.yaml")
    tree = YAML(typ="safe").load(path)
    backwards = {key: dict(reversed(value.items())) for key, value in reversed(tree.items())}
    with path.open("w") as file:
        file.write("# another comment\n")
        YAML(typ="safe").dump(backwards, file)
    path.write_text(path.read_text().replace("0.004", "4.0e-3"))
    assert "4.0e-3" in path.read_text()
    assert workspace.reruns("--no-run-cache") == set()


def test_bytecode_left_behind_reruns_nothing(workspace: Any) -> None:
    workspace.run("python", "-m", "compileall", "-q", "src", "pipeline")
    assert list(workspace.path("src").rglob("__pycache__"))
    assert workspace.reruns("--no-run-cache") == set()


def test_a_param_set_back_is_taken_from_the_run_cache(workspace: Any) -> None:
    weights = workspace.path("data/model/weights.safetensors")
    before = weights.read_bytes()
    workspace.set({"train.seed": 1})
    assert workspace.reruns() == {"train", "evaluate"}
    assert weights.read_bytes() != before
    workspace.set({"train.seed": 0})
    assert workspace.reruns() <= {"evaluate"}  # its results are kept by Git, not by DVC's cache, so it may run again
    assert weights.read_bytes() == before


def test_local_text_is_watched(workspace: Any) -> None:
    workspace.path("texts/mine.txt").write_text("It was a dark and stormy night; the rain fell in torrents.\n" * 60)
    workspace.set({"download.corpus": "local"})
    assert workspace.reruns() == ALL
    workspace.path("texts/mine.txt").write_text("It was a bright cold day, and the clocks were striking.\n" * 60)
    assert workspace.reruns() == ALL
