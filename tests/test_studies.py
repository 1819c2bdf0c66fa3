"""Studies: changes to params, points, and the table they are collected in."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import small

from lmlab import params, studies
from lmlab.errors import UserError

TEXT = "".join(f"{number} times {number} is {number * number}.\n" for number in range(120))
SHARED = {
    "train.steps": 4, "train.batch": 4, "train.context": 8, "train.threads": 1, "train.validate_every": 2,
    "train.sample_every": 0, "models.transformer.depth": 1, "models.transformer.width": 16,
    "layers.attention.multi_head.heads": 2, "evaluate.stride": 8, "shard.processes": 1,
}  # fmt: skip


@pytest.fixture
def study(tmp_path: Path, corpus_of: Callable[..., Path], monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder like the project's, with a study in it and a corpus beside."""
    corpus_of(TEXT, "12 times 12 is 144.\n", "7 times 8 is 56.\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("DVC_ROOT", raising=False)
    for name in ("params.yaml", "dvc.yaml"):
        (tmp_path / name).write_text((small.PROJECT / name).read_text())
    folder = tmp_path / "study"
    folder.mkdir()
    (folder / "params.yaml").write_text(json.dumps({"study": {"changes": SHARED, "operations": 0.0}}))
    return folder


def test_changes_are_read_as_in_params_yaml() -> None:
    assert studies.parsed(["a.b=3", "c=true", "d.e*=0.5", "f=3e-4", "g=on", "h=x=y"]) == {
        "a.b": 3, "c": True, "d.e*": 0.5, "f": 3e-4, "g": "on", "h": "x=y",
    }  # fmt: skip
    with pytest.raises(UserError, match=r"'a\.b' is no change; write key=value"):
        studies.parsed(["a.b"])


def test_a_change_replaces_or_multiplies_and_leaves_the_original_alone(tree: params.Tree) -> None:
    made = studies.changed(tree, {"train.seed": 7, "optimizers.adamw.learning_rate*": 0.5})
    assert (made["train"]["seed"], tree["train"]["seed"]) == (7, 0)
    assert made["optimizers"]["adamw"]["learning_rate"] == tree["optimizers"]["adamw"]["learning_rate"] / 2
    with pytest.raises(UserError, match=r"params.yaml has no train.sed; did you mean seed\?"):
        studies.changed(tree, {"train.sed": 1})


def test_a_point_is_run_from_the_corpus_and_leaves_one_file(study: Path) -> None:
    before = {path for path in Path().rglob("*") if path.is_file()}
    target = studies.write_point(study, "first", {"train.seed": 3, "tokenizer.name": "byte"}, Path("corpus"))
    point = json.loads(target.read_text())
    assert point["changes"] == {"train.seed": 3, "tokenizer.name": "byte"}
    assert point["vocabulary"] == 257
    assert [step for step, _ in point["curve"]] == [2, 4]
    assert point["curve"][-1][1] == pytest.approx(point["validation"]["nats_per_token"])
    assert point["tokens"] == 4 * 4 * 8
    assert {path for path in Path().rglob("*") if path.is_file()} - before == {target.relative_to(Path.cwd())}
    again = json.loads(studies.write_point(study, "again", point["changes"], Path("corpus")).read_text())
    assert again["validation"] == point["validation"]
    halved = studies.write_point(study, "halved", {"optimizers.adamw.learning_rate*": 0.5}, Path("corpus"))
    assert json.loads(halved.read_text())["changes"] == {"optimizers.adamw.learning_rate": 0.002}  # what it came to


def test_operations_decide_how_many_steps_there_are(study: Path) -> None:
    plain = json.loads(studies.write_point(study, "plain", {}, Path("corpus")).read_text())
    (study / "params.yaml").write_text(json.dumps({"study": {"changes": SHARED, "operations": 3 * plain["operations"]}}))
    assert json.loads(studies.write_point(study, "more", {}, Path("corpus")).read_text())["steps"] == 3 * plain["steps"]
    wide = json.loads(studies.write_point(study, "wide", {"models.transformer.width": 32}, Path("corpus")).read_text())
    assert wide["operations"] == pytest.approx(3 * plain["operations"], rel=0.2)
    assert wide["steps"] < 3 * plain["steps"]


def test_a_run_that_breaks_down_is_a_finding_and_any_other_mistake_is_not(study: Path) -> None:
    changes: dict[str, Any] = {"optimizers.adamw.learning_rate": 1e30, "train.clip": 0.0}
    point = json.loads(studies.write_point(study, "hot", changes, Path("corpus")).read_text())
    assert "broke down at step" in point["broke"]
    assert "validation" not in point
    with pytest.raises(UserError, match="heads do not divide"):
        studies.write_point(study, "wrong", {"layers.attention.multi_head.heads": 5}, Path("corpus"))
    assert not (study / "points" / "wrong.json").exists()


def test_all_points_are_collected_in_one_table(study: Path) -> None:
    with pytest.raises(UserError, match="holds no points"):
        studies.collect(study)
    for seed in (1, 0):
        studies.write_point(study, f"seed-{seed}", {"train.seed": seed}, Path("corpus"))
    table = studies.collect(study)
    assert table["point"].tolist() == ["seed-0", "seed-1"]
    assert table["train.seed"].tolist() == [0, 1]
    assert table["validation_bits_per_byte"].nunique() == 2
    written = (study / "results.csv").read_bytes()
    assert written.count(b"\n") == 3
    studies.collect(study)
    assert (study / "results.csv").read_bytes() == written
