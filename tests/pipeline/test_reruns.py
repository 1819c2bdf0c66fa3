"""Any single change reruns just the stages it affects."""

from typing import Any

import pyarrow.parquet as pq
import pytest

pytestmark = pytest.mark.pipeline

ALL = {"download", "tokenizer", "shard", "train", "evaluate", "probe", "report"}
FROM_TOKENIZER = ALL - {"download"}
FROM_TRAIN = {"train", "evaluate", "probe", "report"}

PARAMS: list[tuple[str, Any, set[str]]] = [
    # each stage's own section
    ("download.validation", 0.2, ALL),
    ("tokenizer.name", "byte", FROM_TOKENIZER),
    ("shard.megabytes", 32.0, {"shard"}),  # as many shards as before: what follows stays valid
    ("train.seed", 1, FROM_TRAIN),
    ("train.snapshots", 2, {"train", "probe"}),  # the weights are the same bytes, so their evaluation stays valid
    ("train.snapshots", 0, {"train", "probe"}),
    ("evaluate.temperature", 0.5, {"evaluate"}),
    ("evaluate.measures", ["prequential"], {"evaluate"}),
    ("measures.minimal_pairs.seed", 1, {"evaluate"}),
    ("probe.windows", 3, {"probe"}),
    ("probe.probes", ["attention", "cost", "hessian", "similarity"], {"probe"}),
    # options of the parts in use, and another part chosen
    ("corpora.grammar.seed", 1, ALL),
    ("models.transformer.width", 32, FROM_TRAIN),
    ("layers.attention.multi_head.heads", 4, FROM_TRAIN),
    ("models.transformer.feed_forward", "swiglu", FROM_TRAIN),
    ("optimizers.adamw.learning_rate", 0.001, FROM_TRAIN),
    ("schedules.linear.final", 0.5, FROM_TRAIN),
    ("parametrisations.standard.power", 0.0, FROM_TRAIN),
    ("probes.activations.dead_below", 0.1, {"probe"}),
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
    # each stage's script: its bytes changed, its outputs did not, so what follows stays valid, but for the report
    ("pipeline/download.py", {"download"}),
    ("pipeline/tokenizer.py", {"tokenizer"}),
    ("pipeline/shard.py", {"shard"}),
    ("pipeline/train.py", {"train"}),
    ("pipeline/evaluate.py", {"evaluate"}),
    ("pipeline/probe.py", {"probe"}),
    ("pipeline/report.py", set()),
    # the parts in use
    ("src/lmlab/corpora/grammar.py", {"download", "evaluate"}),  # which makes minimal pairs from it
    ("src/lmlab/tokenizers/character.py", FROM_TOKENIZER),
    ("src/lmlab/layers/feed_forward/relu_squared.py", FROM_TRAIN),
    ("src/lmlab/learning_rules/backprop.py", {"train", "probe"}),  # which runs the rule again
    ("src/lmlab/probes/gradient_angle.py", {"probe"}),
    ("src/lmlab/probes/base.py", {"probe"}),
    ("src/lmlab/schedules/linear.py", {"train"}),
    ("src/lmlab/evaluation/kneser_ney.py", {"evaluate"}),
    ("src/lmlab/measures/novelty.py", {"evaluate"}),
    ("src/lmlab/experiments/charts.py", set()),
    ("src/lmlab/experiments/page.html", set()),
]

UNUSED_CODE = [
    "README.md",
    "src/lmlab/corpora/markov.py",
    "src/lmlab/tokenizers/bpe.py",
    "src/lmlab/tokenizers/byte.py",
    "src/lmlab/layers/attention/latent.py",
    "src/lmlab/models/lstm.py",
    "src/lmlab/optimizers/muon.py",
    "src/lmlab/experiments/studies.py",
    "src/lmlab/layers/feed_forward/swiglu.py",
    "src/lmlab/layers/normalisation/layer_norm.py",
    "src/lmlab/layers/position/absent.py",
    "src/lmlab/schedules/cosine.py",
    "src/lmlab/cli.py",
    "src/lmlab/preflight.py",
]


@pytest.mark.parametrize(("key", "value", "expected"), PARAMS, ids=[f"{key}={value}" for key, value, _ in PARAMS])
def test_a_changed_param_reruns_the_stages_it_affects(workspace: Any, key: str, value: Any, expected: set[str]) -> None:
    workspace.set({key: value})
    assert workspace.reruns("--no-run-cache") == (expected | {"report"} if expected else set())  # it shows params in use


@pytest.mark.parametrize(("source", "expected"), CODE, ids=[source for source, _ in CODE])
def test_changed_code_reruns_the_stages_that_use_it(workspace: Any, source: str, expected: set[str]) -> None:
    workspace.touch_code(source)
    assert workspace.reruns("--no-run-cache") == expected | {"report"}  # it shows how long each stage took


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
    assert workspace.reruns() == FROM_TRAIN
    assert weights.read_bytes() != before
    workspace.set({"train.seed": 0})
    assert workspace.reruns() <= {
        "evaluate",
        "report",
    }  # its results are kept by Git, not by DVC's cache, so it may run again
    assert weights.read_bytes() == before


def test_local_text_is_watched(workspace: Any) -> None:
    workspace.path("texts/mine.txt").write_text("It was a dark and stormy night; the rain fell in torrents.\n" * 60)
    workspace.set({"download.corpus": "local"})
    assert workspace.reruns() == ALL
    workspace.path("texts/mine.txt").write_text("It was a bright cold day, and the clocks were striking.\n" * 60)
    assert workspace.reruns() == ALL


def test_without_snapshots_probes_have_nothing_to_say(workspace: Any) -> None:
    table = workspace.path("data/probes/probes.parquet")
    assert pq.read_table(table).num_rows > 0
    workspace.set({"train.snapshots": 0})
    workspace.reruns()
    assert pq.read_table(table).num_rows == 0
    assert [path.name for path in workspace.path("data/snapshots").iterdir()] == ["run.json"]


def test_a_finished_run_is_looked_at_again_without_training(workspace: Any) -> None:
    """The readings are the same bytes each time, and another probe beside them changes none of them."""
    table = workspace.path("data/probes/probes.parquet")
    before, rows = table.read_bytes(), pq.read_table(table).to_pylist()
    workspace.run("dvc", "repro", "--force", "--single-item", "--no-run-cache", "probe")
    assert table.read_bytes() == before
    names = [*dict.fromkeys(row["probe"] for row in rows), "attention"]
    workspace.run("dvc", "exp", "run", "-S", f"probe.probes=[{','.join(names)}]")
    more = pq.read_table(table).to_pylist()
    assert {row["measure"] for row in more if row["probe"] == "attention"} == {"entropy", "induction"}
    assert [row for row in more if row["probe"] != "attention"] == rows
