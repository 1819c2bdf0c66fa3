"""Studies: changes to params, points, and the table they are collected in."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import small
import torch
from typer.testing import CliRunner

from lmlab import cli
from lmlab.core import params
from lmlab.core.errors import UserError
from lmlab.core.files import read_json
from lmlab.experiments.studies import findings, studies

TEXT = "".join(f"{number} times {number} is {number * number}.\n" for number in range(120))
SHARED = {
    "train.steps": 4,
    "train.batch": 4,
    "train.context": 8,
    "train.threads": 1,
    "train.validate_every": 2,
    "train.sample_every": 0,
    "train.snapshots": 0,
    "models.transformer.depth": 1,
    "models.transformer.width": 16,
    "layers.attention.multi_head.heads": 2,
    "evaluate.stride": 8,
    "shard.processes": 1,
    **small.PLAIN,
}


ARMS = {
    "plain": {"changes": {}, "sweep": {}},
    "swept": {"changes": {}, "sweep": {"optimizers.adamw.learning_rate*": [1, 0.5, 1e33]}},
    "bytes": {"changes": {"tokenizer.name": "byte"}, "sweep": {}},
    "wrong": {"changes": {"layers.attention.multi_head.heads": 5}, "sweep": {}},
}
STUDY = {
    "changes": SHARED,
    "flops": 0.0,
    "sweep_seeds": [0],
    "seeds": [0, 1],
    "processes": 1,
    "each": "",
    "sweep": {},
    "reference": "plain",
}


@pytest.fixture
def folder(tmp_path: Path, corpus_of: Callable[..., Path], monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder like the project's, with a study in it and a corpus beside."""
    corpus_of(TEXT, "12 times 12 is 144.\n", "7 times 8 is 56.\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("DVC_ROOT", raising=False)
    for name in ("params.yaml", "dvc.yaml"):
        (tmp_path / name).write_text((small.PROJECT / name).read_text())
    made = tmp_path / "study"
    made.mkdir()
    write(made)
    return made


def write(folder: Path, quick: dict[str, Any] | None = None, **changes: Any) -> None:
    (folder / "params.yaml").write_text(
        json.dumps({"study": {**STUDY, **changes}, "arms": ARMS, "quick": quick or {}})
    )


def run(folder: Path, arm: str, quick: bool = False) -> dict[str, Any]:
    found = studies.run_arm(
        studies.read(folder, quick), arm, Path("corpus"), folder / "points" / f"{arm}.json"
    )
    assert read_json(folder / "points" / f"{arm}.json", made_by="arm") == found
    return found


def test_a_change_replaces_or_multiplies_and_leaves_the_original_alone(tree: params.Tree) -> None:
    made = params.changed(tree, {"train.seed": 7, "optimizers.adamw.learning_rate*": 0.5})
    assert (made["train"]["seed"], tree["train"]["seed"]) == (7, 0)
    assert (
        made["optimizers"]["adamw"]["learning_rate"]
        == tree["optimizers"]["adamw"]["learning_rate"] / 2
    )
    with pytest.raises(UserError, match=r"params.yaml has no train.sed; did you mean seed\?"):
        params.changed(tree, {"train.sed": 1})


def test_an_arm_is_run_with_every_seed_and_leaves_one_file_beside_what_it_keeps(
    folder: Path,
) -> None:
    before = {path for path in Path().rglob("*") if path.is_file()}
    found = run(folder, "plain")
    assert found["best"] == {}
    assert [point["seed"] for point in found["points"]] == [0, 1]
    first, second = found["points"]
    assert first["validation"] != second["validation"]
    assert [step for step, _ in first["curve"]] == [2, 4]
    assert first["curve"][-1][1] == pytest.approx(first["validation"]["nats_per_token"])
    assert first["tokens"] == 4 * 4 * 8
    left = {path for path in Path().rglob("*") if path.is_file()} - before
    assert {path.parts[0] for path in left} == {"study", ".scratch"}
    assert run(folder, "bytes")["points"][0]["vocabulary_size"] == 257


def test_an_arm_sweeps_and_runs_its_seeds_at_the_best_value_and_what_breaks_down_is_never_the_best(
    folder: Path,
) -> None:
    write(folder, changes={**SHARED, "train.clip": 0.0})
    found = run(folder, "swept")
    rate = 0.004
    assert [point["at"]["optimizers.adamw.learning_rate"] for point in found["points"][:3]] == [
        rate,
        rate / 2,
        rate * 1e33,
    ]
    assert found["points"][2]["broke"].startswith("diverged at step ")
    assert found["points"][2]["training"]  # until there
    assert "validation" not in found["points"][2]
    least = min(found["points"][:2], key=lambda point: point["validation"]["bits_per_byte"])
    assert found["best"] == least["at"]
    assert [(point["at"], point["seed"]) for point in found["points"][3:]] == [(least["at"], 1)]
    table = studies.collect(folder / "points", folder / "results.csv")
    assert table["at_best"].sum() == 2
    assert table["seed"].tolist() == [0, 0, 0, 1]


def test_a_study_whose_every_run_diverged_is_a_table_all_the_same(folder: Path) -> None:
    write(
        folder,
        changes={**SHARED, "train.clip": 0.0, "optimizers.adamw.learning_rate": 1e38},
        seeds=[],
    )
    found = run(folder, "plain")
    assert found["points"][0]["broke"].startswith("diverged at step ")
    assert found["points"][0]["environment"] == {"torch": torch.__version__}
    summary = findings.write(studies.read(folder), folder)
    assert summary["bits_per_byte"].isna().all()
    assert summary["diverged"].tolist() == [1]
    shown = CliRunner().invoke(cli.app, ["study", "study", "--arm", "plain", "--corpus", "corpus"])
    assert shown.exit_code == 0, shown.output


def test_the_test_split_is_sealed_for_studies_too(folder: Path) -> None:
    assert "test" not in run(folder, "plain")["points"][0]
    table = studies.collect(folder / "points", folder / "results.csv")
    assert not [column for column in table if "test" in str(column)]


def test_what_was_run_is_not_run_again_and_another_seed_or_code_is(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ran: list[int] = []
    real = studies.quiet_point
    monkeypatch.setattr(
        studies, "quiet_point", lambda *work: (ran.append(work[0]["train"]["seed"]), real(*work))[1]
    )
    first = run(folder, "plain")
    assert run(folder, "plain") == first
    assert ran == [0, 1]
    write(folder, seeds=[0, 1, 2])
    more = run(folder, "plain")
    assert more["points"][:2] == first["points"]
    assert ran == [0, 1, 2]
    monkeypatch.setattr(studies, "_code", lambda: {"training.py": "edited"})
    run(folder, "plain")
    assert ran == [0, 1, 2, 0, 1, 2]


@pytest.mark.parametrize("spoil", ["flip", "cut", "delete"])
def test_a_kept_result_that_is_not_whole_is_made_again(
    spoil: str, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ran: list[int] = []
    point = {"validation": {"bits_per_byte": 2.5, "nats_per_token": 1.5}}
    monkeypatch.setattr(
        studies, "quiet_point", lambda *work: (ran.append(work[0]["train"]["seed"]), point)[1]
    )
    first = run(folder, "plain")
    kept = sorted(Path(".scratch/points").iterdir())[0]
    content = kept.read_text()
    kept.write_text(
        {"flip": content.replace("2.5", "2.4"), "cut": content[:-9], "delete": ""}[spoil]
    )
    if spoil == "delete":
        kept.unlink()
    assert run(folder, "plain") == first
    assert len(ran) == 3
    arm = folder / "points" / "plain.json"
    arm.write_text(arm.read_text().replace("2.5", "2.4"))
    with pytest.raises(UserError, match=r"plain.json is damaged"):
        findings.write(studies.read(folder), folder)


def test_side_by_side_is_as_one_after_the_other(folder: Path) -> None:
    alone = run(folder, "plain")
    for kept in Path(".scratch/points").iterdir():
        kept.unlink()
    write(folder, processes=2)
    both = run(folder, "plain")
    for one, other in zip(alone["points"], both["points"], strict=True):
        assert {key: value for key, value in one.items() if "second" not in key} == {
            key: value for key, value in other.items() if "second" not in key
        }


def test_flops_decide_how_many_steps_there_are(folder: Path) -> None:
    plain = run(folder, "plain")["points"][0]
    write(folder, flops=3 * plain["flops"])
    more = run(folder, "plain")["points"][0]
    assert more["steps"] == 3 * plain["steps"]
    assert more["flops"] == pytest.approx(3 * plain["flops"])


def test_the_quick_form_takes_the_place_of_what_it_names(folder: Path) -> None:
    write(folder, quick={"seeds": [5], "sweep_seeds": [5], "changes": {"train.steps": 2}})
    found = run(folder, "plain", quick=True)["points"]
    assert [(point["seed"], point["steps"]) for point in found] == [(5, 2)]
    assert studies.read(folder, quick=True).params.changes["train.batch"] == 4
    assert studies.read(folder).params.seeds == [0, 1]


def test_every_value_of_the_key_each_is_an_arm_with_the_shared_sweep(folder: Path) -> None:
    write(folder, each="train.optimizer", sweep={"train.steps": [2, 3]}, seeds=[])
    found = run(folder, "lion")
    assert [point["at"] for point in found["points"]] == [{"train.steps": 2}, {"train.steps": 3}]
    assert studies.read(folder).arm("swept")[0] == {"train.optimizer": "swept"}
    assert studies.read(folder).arm("swept")[1] == ARMS["swept"]["sweep"]
    with pytest.raises(UserError, match="there is no 'lyon' in optimizers; did you mean lion"):
        run(folder, "lyon")


def test_mistakes_are_told_and_leave_nothing(folder: Path) -> None:
    with pytest.raises(UserError, match="arms has no 'plian'; did you mean plain"):
        run(folder, "plian")
    with pytest.raises(UserError, match="heads do not divide"):
        run(folder, "wrong")
    write(folder, sede=3)
    with pytest.raises(UserError, match=r"study\.sede is not a known key"):
        run(folder, "plain")
    assert not (folder / "points").exists() or not list((folder / "points").iterdir())


def test_all_runs_are_collected_in_one_table(folder: Path) -> None:
    with pytest.raises(UserError, match="holds no points"):
        studies.collect(folder / "points", folder / "results.csv")
    run(folder, "plain")
    run(folder, "bytes")
    table = studies.collect(folder / "points", folder / "results.csv")
    assert table["arm"].tolist() == ["bytes", "bytes", "plain", "plain"]
    assert table["seed"].tolist() == [0, 1, 0, 1]
    assert table["validation_bits_per_byte"].nunique() == 4
    written = (folder / "results.csv").read_bytes()
    assert written.count(b"\n") == 5
    studies.collect(folder / "points", folder / "results.csv")
    assert (folder / "results.csv").read_bytes() == written


def test_the_quick_form_may_give_an_arm_another_sweep_and_other_seeds(folder: Path) -> None:
    write(
        folder,
        quick={"arms": {"swept": {"sweep": {"train.steps": [2, 3]}, "sweep_seeds": [4, 5]}}},
        seeds=[],
    )
    found = run(folder, "swept", quick=True)["points"]
    assert [(point["seed"], point["steps"]) for point in found] == [(4, 2), (5, 2), (4, 3), (5, 3)]
    assert studies.read(folder).sweep_seeds("swept") == [0]
    assert studies.read(folder).arm("swept")[1] == ARMS["swept"]["sweep"]
    write(folder, quick={"arms": {"swpt": {}}})
    with pytest.raises(UserError, match=r"quick\.arms\.swpt is no arm; did you mean swept"):
        studies.read(folder, quick=True)


def test_a_study_may_have_a_corpus_of_its_own(folder: Path) -> None:
    own = {
        "download.corpus": "grammar",
        "corpora.grammar.documents": 6,
        "corpora.grammar.sentences": 8,
    }
    write(folder, changes={**SHARED, **own})
    own_study, own_corpus = studies.read(Path("study")), Path("study/corpus")
    with pytest.raises(
        UserError,
        match=r"study/corpus holds no corpus; run `dvc repro study/dvc\.yaml:corpus` first",
    ):
        studies.run_arm(own_study, "plain", own_corpus, folder / "points" / "plain.json")
    assert studies.build_corpus(own_study, own_corpus)["corpus"] == "grammar"
    found = studies.run_arm(own_study, "plain", own_corpus, folder / "points" / "plain.json")
    assert found["points"][0]["validation"] != run(folder, "plain")["points"][0]["validation"]


def test_the_template_runs_as_it_is(folder: Path) -> None:
    shutil.copytree(small.PROJECT / "studies" / "template", "mine")
    made = dict(params.read(Path("mine/params.yaml")))
    made["study"]["changes"] |= {**SHARED, "train.snapshots": 0}
    made["quick"]["changes"] |= {"train.steps": 3}
    made["study"]["processes"] = 1
    Path("mine/params.yaml").write_text(json.dumps(made))
    shown = CliRunner().invoke(cli.app, ["study", "mine", "--quick", "--corpus", "corpus"])
    assert shown.exit_code == 0, shown.output
    tried = pd.read_csv("mine/tried/results.csv")
    assert dict(tried.groupby("arm").size()) == {
        "linear": 4,
        "cosine": 4,
    }  # three rates, and another seed at the best
    assert dict(tried.groupby("arm")["at_best"].sum()) == {"linear": 2, "cosine": 2}
    Path("mine/tried").rename("mine/points")
    summary = findings.write(studies.read(Path("mine")), Path("mine"))
    assert set(summary["arm"]) == set(made["arms"])
    assert {path.name for path in Path("mine").iterdir()} >= {
        "results.csv",
        "summary.csv",
        "charts",
    }


@pytest.mark.parametrize(
    "name", sorted(path.parent.name for path in small.PROJECT.glob("studies/*/dvc.yaml"))
)
def test_a_published_study_has_an_arm_a_stage_and_a_file_of_results_for_each_name(
    name: str,
) -> None:
    folder = small.PROJECT / "studies" / name
    study = studies.read(folder)
    stage = params.read(folder / "dvc.yaml")["stages"]["arm"]
    named = stage["matrix"]["name"] if "matrix" in stage else stage["foreach"]
    assert named == "${arms}" or sorted(named) == sorted(
        study.arms
    )  # DVC itself reads the arms in params.yaml
    tree = params.changed(params.read(small.PROJECT / "params.yaml"), study.params.changes)
    for arm in study.arms:
        changes, sweep = study.arm(arm)
        params.changed(tree, {**changes, **{key: values[0] for key, values in sweep.items()}})
    assert {path.stem for path in (folder / "points").glob("*.json")} == set(study.arms)
