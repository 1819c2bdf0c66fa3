"""Any single change makes stale just the stages it affects, and they alone run again.

What is *directly* stale is asked of DVC, without running anything: a stage whose own code, params
or inputs are not those of dvc.lock. That what reads a changed output runs too, and what reads one
that came out the same does not, is DVC's part; it is tried with real runs, on one change that
reaches far and one that does not.
"""

import shutil
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pyarrow.parquet as pq
import pytest
from ruamel.yaml import YAML

pytestmark = pytest.mark.pipeline

STAGES = ("start", "download", "tokenizer", "shard", "train", "evaluate", "probe", "report")
ALL = set(STAGES)
MODEL = {"train", "evaluate", "probe"}
"""The stages that build the model."""

PARAMS: list[tuple[str, Any, set[str]]] = [
    # each stage's own section
    ("download.validation", 0.2, {"download"}),
    ("tokenizer.name", "byte", {"tokenizer", "shard", *MODEL}),
    ("shard.megabytes", 32.0, {"shard"}),
    ("train.seed", 1, {"train"}),
    ("train.snapshots", 2, {"train"}),
    ("train.snapshots", 0, {"train"}),
    ("evaluate.temperature", 0.5, {"evaluate"}),
    ("evaluate.measures", ["prequential"], {"evaluate"}),
    ("measures.minimal_pairs.seed", 1, {"evaluate"}),
    ("probe.windows", 3, {"probe"}),
    ("probe.probes", ["attention", "cost", "hessian", "similarity"], {"probe"}),
    # options of the parts in use, and another part chosen
    ("corpora.grammar.seed", 1, {"download"}),
    ("models.transformer.width", 32, {"train"}),
    ("layers.attention.multi_head.heads", 4, {"train"}),
    ("models.transformer.feed_forward", "swiglu", MODEL),
    ("train.model", "lstm", MODEL),
    ("train.learning_rule", "frozen", {"train", "probe"}),
    ("train.third_intervention", "gradient_noise", {"train", "probe"}),
    ("train.optimizer", "lion", {"train"}),
    ("optimizers.adamw.learning_rate", 0.001, {"train"}),
    ("schedules.linear.final", 0.5, {"train"}),
    ("parametrisations.standard.power", 0.0, {"train"}),
    ("probes.activations.dead_below", 0.1, {"probe"}),
    # options of parts that are not in use
    ("corpora.markov.order", 3, set()),
    ("corpora.bible.translation", "world_english", set()),
    ("layers.feed_forward.swiglu.expansion", 3.0, set()),
    ("schedules.cosine.final", 0.2, set()),
    ("models.lstm.layers", 3, set()),
    ("optimizers.muon.momentum", 0.9, set()),
    ("tokenizers.bpe.vocabulary_size", 400, set()),
]

CODE: list[tuple[str, set[str]]] = [
    # each stage's script
    *((f"pipeline/{stage}.py", {stage}) for stage in STAGES),
    ("pipeline/__init__.py", ALL),
    # the parts in use
    (
        "src/lmlab/data/corpora/grammar.py",
        {"download", "evaluate"},
    ),  # which makes minimal pairs from it
    ("src/lmlab/data/tokenizers/character.py", {"tokenizer", "shard", *MODEL}),
    ("src/lmlab/model/layers/feed_forward/relu_squared.py", MODEL),
    (
        "src/lmlab/training/learning_rules/backprop.py",
        {"train", "probe"},
    ),  # which runs the rule again
    ("src/lmlab/evaluation/probes/gradient_angle.py", {"probe"}),
    ("src/lmlab/evaluation/probes/base.py", {"probe"}),
    ("src/lmlab/training/schedules/linear.py", {"train"}),
    ("src/lmlab/evaluation/kneser_ney.py", {"evaluate"}),
    ("src/lmlab/evaluation/measures/novelty.py", {"evaluate"}),
    ("src/lmlab/experiments/report/charts.py", {"report"}),
    ("src/lmlab/experiments/report/page.html", {"report"}),
]

UNUSED_CODE = [
    "README.md",
    "src/lmlab/data/corpora/markov.py",
    "src/lmlab/data/tokenizers/bpe.py",
    "src/lmlab/data/tokenizers/byte.py",
    "src/lmlab/model/layers/attention/latent.py",
    "src/lmlab/model/models/lstm.py",
    "src/lmlab/training/optimizers/muon.py",
    "src/lmlab/experiments/studies/point.py",
    "src/lmlab/model/layers/feed_forward/swiglu.py",
    "src/lmlab/model/layers/normalisation/layer_norm.py",
    "src/lmlab/model/layers/position/no_position.py",
    "src/lmlab/training/schedules/cosine.py",
    "src/lmlab/cli/runs.py",
    "src/lmlab/experiments/preflight.py",
    "src/lmlab/experiments/runcache.py",
    "src/lmlab/experiments/timing.py",
]


@pytest.fixture(scope="module")
def shared(finished: Any, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A copy of the finished run for all tests that put back what they change."""
    home = tmp_path_factory.mktemp("home")
    folder = tmp_path_factory.mktemp("shared") / "lab"
    shutil.copytree(finished.folder, folder, symlinks=True)
    return replace(finished, folder=folder, home=home)


@pytest.fixture
def lab(shared: Any) -> Iterator[Any]:
    """The shared copy, put back afterwards."""
    yield shared
    shared.run("git", "checkout", "-q", ".")
    shared.run("git", "clean", "-qfd", "src")


def test_a_finished_run_is_up_to_date(lab: Any) -> None:
    assert lab.status() == set()


@pytest.mark.parametrize(
    ("key", "value", "expected"), PARAMS, ids=[f"{key}={value}" for key, value, _ in PARAMS]
)
def test_a_changed_param_makes_stale_the_stages_that_read_it(
    lab: Any, key: str, value: Any, expected: set[str]
) -> None:
    lab.set({key: value})
    assert lab.status() == (expected | {"report"} if expected else set())  # it shows params in use


@pytest.mark.parametrize(("source", "expected"), CODE, ids=[source for source, _ in CODE])
def test_changed_code_makes_stale_the_stages_that_use_it(
    lab: Any, source: str, expected: set[str]
) -> None:
    lab.touch_code(source)
    assert lab.status() == expected


def test_code_that_the_run_does_not_use_makes_nothing_stale(lab: Any) -> None:
    for source in UNUSED_CODE:
        lab.touch_code(source)
    lab.path("src/lmlab/training/schedules/newly_added.py").write_text(
        '"""A part nobody chose."""\n'
    )
    assert lab.status() == set()


def test_comments_key_order_and_spelling_of_numbers_make_nothing_stale(lab: Any) -> None:
    path = lab.path("params.yaml")
    tree = YAML(typ="safe").load(path)
    backwards = {key: dict(reversed(value.items())) for key, value in reversed(tree.items())}
    with path.open("w") as file:
        file.write("# another comment\n")
        YAML(typ="safe").dump(backwards, file)
    path.write_text(path.read_text().replace("0.004", "4.0e-3"))
    assert "4.0e-3" in path.read_text()
    assert lab.status() == set()


def test_bytecode_left_behind_makes_nothing_stale(lab: Any) -> None:
    lab.run("python", "-m", "compileall", "-q", "src", "pipeline")
    assert list(lab.path("src").rglob("__pycache__"))
    assert lab.status() == set()


def test_local_text_is_watched(workspace: Any) -> None:
    workspace.path("texts/mine.txt").write_text(
        "It was a dark and stormy night; the rain fell in torrents.\n" * 60
    )
    workspace.set({"download.corpus": "local"})
    assert workspace.reruns("download") == {"download"}
    assert "download" not in workspace.status()
    workspace.path("texts/mine.txt").write_text(
        "It was a bright cold day, and the clocks were striking.\n" * 60
    )
    assert "download" in workspace.status()


def test_what_reads_a_changed_output_runs_again_and_what_was_set_back_comes_from_the_cache(
    workspace: Any,
) -> None:
    weights = workspace.path("data/model/weights.safetensors")
    before = weights.read_bytes()
    workspace.set({"tokenizer.name": "byte"})
    assert workspace.reruns("evaluate") == {"tokenizer", "shard", "train", "evaluate"}
    assert weights.read_bytes() != before
    workspace.set({"tokenizer.name": "character"})
    assert workspace.reruns() <= {"evaluate"}
    assert weights.read_bytes() == before


def test_what_reads_an_output_that_came_out_the_same_does_not_run_again(workspace: Any) -> None:
    workspace.touch_code("src/lmlab/training/schedules/linear.py")
    workspace.set({"shard.megabytes": 32.0})  # as many shards as before
    assert workspace.reruns("--no-run-cache", "evaluate") == {"shard", "train"}
    assert workspace.reruns("--no-run-cache", "evaluate") == set()


def test_without_snapshots_probes_have_nothing_to_say(inside: Any) -> None:
    table = inside.workspace.path("data/probes/probes.parquet")
    assert pq.read_table(table).num_rows > 0
    inside.workspace.set({"train.snapshots": 0})
    inside.run("train", "probe", "report")
    assert pq.read_table(table).num_rows == 0
    left = sorted(path.name for path in inside.workspace.path("data/snapshots").iterdir())
    assert left == ["SHA256SUMS", "run.json"]


def test_a_finished_run_is_looked_at_again_without_training(inside: Any) -> None:
    """The readings are the same bytes each time, and another probe beside them changes none of
    them.
    """
    table = inside.workspace.path("data/probes/probes.parquet")
    before, rows = table.read_bytes(), pq.read_table(table).to_pylist()
    inside.run("probe")
    assert table.read_bytes() == before
    names = [*dict.fromkeys(row["probe"] for row in rows), "attention"]
    inside.workspace.set({"probe.probes": names})
    inside.run("probe")
    more = pq.read_table(table).to_pylist()
    assert {row["measure"] for row in more if row["probe"] == "attention"} == {
        "entropy",
        "induction",
    }
    assert [row for row in more if row["probe"] != "attention"] == rows


def test_a_tokenizer_from_a_file_is_watched(workspace: Any) -> None:
    """Its bytes are among the stage's dependencies, so that another one of the same name runs the
    stage again.
    """
    shutil.copy(workspace.path("data/tokenizer/tokenizer.json"), workspace.path("given.json"))
    workspace.set({"tokenizer.from": "given.json"})
    assert workspace.status() == {"tokenizer", "report"}  # the report shows all of params.yaml
    workspace.run("dvc", "repro", "tokenizer")
    assert (
        workspace.path("data/tokenizer/tokenizer.json").read_bytes()
        == workspace.path("given.json").read_bytes()
    )
    assert workspace.status() == {"report"}
    workspace.path("given.json").write_text(workspace.path("given.json").read_text() + "\n")
    assert workspace.status() == {"tokenizer", "report"}  # the report shows all of params.yaml
