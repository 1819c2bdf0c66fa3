"""Studies: what is run, what is kept, what is stale, and what goes into one table."""

import json
import math
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import small
from typer.testing import CliRunner

from lmlab import cli
from lmlab.core import params
from lmlab.core.errors import UserError
from lmlab.core.files import read_json, seal
from lmlab.experiments.studies import (
    levels,
    making,
    publish,
    records,
    running,
    study,
    table,
    workers,
)
from lmlab.experiments.studies import point as points

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
    "sweep_seeds": [100, 101],
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
    (tmp_path / "data").mkdir()
    (tmp_path / "corpus").rename(tmp_path / "data" / "corpus")
    monkeypatch.delenv("DVC_ROOT", raising=False)
    for name in ("params.yaml", "dvc.yaml"):
        (tmp_path / name).write_text((small.PROJECT / name).read_text())
    folder = tmp_path / "study"
    folder.mkdir()
    write(folder)
    return folder


def write(
    folder: Path,
    quick: dict[str, Any] | None = None,
    arms: dict[str, Any] | None = None,
    **changes: Any,
) -> None:
    blocks = {"study": {**STUDY, **changes}, "arms": arms or ARMS, "quick": quick or {}}
    (folder / "params.yaml").write_text(json.dumps(blocks))


CORPUS = Path("data/corpus")
STUDIES = sorted(path.parent.name for path in small.PROJECT.glob("studies/*/params.yaml"))


def run(folder: Path, arm: str, quick: bool = False) -> dict[str, Any]:
    asked = study.read(folder, quick)
    with workers.here(1) as made:
        record = running.run_arm(asked, arm, CORPUS, made).as_json()
    assert read_json(asked.points(arm), made_by="study") == record
    return record


def seeds_of(record: dict[str, Any], reported: bool) -> list[int]:
    return [point["seed"] for point in record["points"] if point["reported"] == reported]


@pytest.fixture
def ran(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The seeds that were run, in order; what the runs give is made up and quick."""
    seeds: list[int] = []

    def measured(
        tree: params.Tree, flops: float, corpus: Path, first: points.First | None = None
    ) -> dict[str, Any]:
        seed = tree["train"]["seed"]
        seeds.append(seed)
        bits = 2.5 + seed / 1000
        return {"validation": {"bits_per_byte": bits, "nats_per_token": bits}}

    monkeypatch.setattr(points, "run_quietly", measured)
    return seeds


def test_an_arm_runs_its_seeds_and_leaves_one_file_beside_what_it_keeps(folder: Path) -> None:
    before = {path for path in Path().rglob("*") if path.is_file()}
    record = run(folder, "plain")
    assert record["best"] == {}
    assert seeds_of(record, reported=True) == [0, 1]
    assert seeds_of(record, reported=False) == []
    first, second = record["points"]
    assert first["validation"] != second["validation"]
    assert [step for step, _ in first["curve"]] == [2, 4]
    assert first["curve"][-1][1] == pytest.approx(first["validation"]["nats_per_token"])
    assert first["tokens"] == 4 * 4 * 8
    left = {path for path in Path().rglob("*") if path.is_file()} - before
    assert {path.parts[0] for path in left} == {"study", ".scratch"}
    assert run(folder, "bytes")["points"][0]["vocabulary_size"] == 257


def test_an_arm_reports_other_seeds_than_it_sweeps_with_and_what_diverges_is_never_the_best(
    folder: Path,
) -> None:
    write(folder, changes={**SHARED, "train.clip": 0.0})
    record = run(folder, "swept")
    rate = 0.004
    swept = [point for point in record["points"] if not point["reported"]]
    rates = [point["at"]["optimizers.adamw.learning_rate"] for point in swept]
    assert rates == [rate, rate, rate / 2, rate / 2, rate * 1e33, rate * 1e33]
    assert seeds_of(record, reported=False) == [100, 101] * 3
    assert swept[4]["diverged"].startswith("diverged at step ")
    assert swept[4]["training"]  # until there
    assert "validation" not in swept[4]
    means = {
        rates[place]: sum(point["validation"]["bits_per_byte"] for point in swept[place:][:2]) / 2
        for place in (0, 2)
    }
    best = {"optimizers.adamw.learning_rate": min(means, key=lambda rate: means[rate])}
    assert record["best"] == best
    final = [point for point in record["points"] if point["reported"]]
    assert [(point["at"], point["seed"]) for point in final] == [(best, 0), (best, 1)]
    rows = table.rows({"swept": records.read(study.read(folder).points("swept"))})
    assert rows["reported"].sum() == 2
    summary = table.summary(rows, "plain").iloc[0]
    assert summary["seeds"] == 2
    reported_bits = [point["validation"]["bits_per_byte"] for point in final]
    assert summary["bits_per_byte"] == pytest.approx(sum(reported_bits) / 2)


FIRST_ARMS = {
    "plain": {},
    "migrated": {
        "first": {"train.steps": 6},
        "changes": {"tokenizer.name": "byte", "start.migration": "spelled"},
    },
    "grown": {
        "first": {"train.steps": 6},
        "changes": {"start.growth": ["interleaved"], "models.transformer.depth": 2},
    },
}


def test_an_arm_goes_on_from_a_run_that_is_made_once_for_each_seed(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trained = []
    real = points.train

    def noted(tree: params.Tree, layout: Any) -> Any:
        trained.append((tree["train"]["steps"], tree["train"]["seed"], tree["start"]["commit"]))
        return real(tree, layout)

    monkeypatch.setattr(points, "train", noted)
    write(folder, arms=FIRST_ARMS)
    plain = run(folder, "plain")["points"]
    records_ = {name: run(folder, name) for name in ("migrated", "grown")}
    from_scratch = [(steps, seed) for steps, seed, commit in trained if not commit]
    assert from_scratch == [(4, 0), (4, 1), (6, 0), (6, 1)]
    assert [(steps, seed) for steps, seed, commit in trained if commit] == [(4, 0), (4, 1)] * 2
    for record in records_.values():
        for point in record["points"]:
            assert (point["steps"], point["own_steps"]) == (10, 4)
            assert point["tokens"] == 10 * 4 * 8
            assert point["flops"] > point["own_flops"] > 0
            assert point["own_bytes"] > 0
            assert [step for step, _ in point["curve"]] == [6, 8, 10]
    assert records_["migrated"]["points"][0]["vocabulary_size"] == 257
    grown = records_["grown"]["points"]
    assert grown[0]["parameters"] > plain[0]["parameters"]
    assert grown[0]["bits_per_byte_before"] != grown[1]["bits_per_byte_before"]
    of_first = points.read_record(next(Path(".scratch/firsts").iterdir()) / "run" / "model")
    assert of_first.steps == 6
    found = table.rows({name: records.read(study.read(folder).points(name)) for name in FIRST_ARMS})
    assert found["own_flops"].notna().sum() == 4
    asked = study.read(folder)
    table.check_alike(asked, table.read_arms(asked))
    assert running.stale(asked, "grown", CORPUS) == []
    write(
        folder, arms={**FIRST_ARMS, "grown": {**FIRST_ARMS["grown"], "first": {"train.steps": 7}}}
    )
    (reason,) = running.stale(study.read(folder), "grown", CORPUS)
    assert reason == "params: first.train.steps was 6, is 7"


def result_of(curve: list[list[float]], **values: Any) -> records.Result:
    """A run of 40 steps with a byte for each token, whose curve is in bits."""
    nats = [[step, bits * math.log(2)] for step, bits in curve]
    return records.Result(
        curve=nats, steps=40, bytes=4000, flops=8000, bytes_per_token=1.0, **values
    )


@pytest.mark.parametrize(
    ("level", "bytes_", "flops"),
    [(5.0, 1000, 2000), (3.5, 1500, 3000), (2.0, 3000, 6000), (1.9, math.inf, math.inf)],
)
def test_what_a_run_spent_to_a_level_is_read_off_its_curve(
    level: float, bytes_: float, flops: float
) -> None:
    curve = [[10, 4.0], [20, 3.0], [30, 2.0], [40, 2.5]]
    assert levels.spent_to(result_of(curve), level) == pytest.approx((bytes_, flops))


@pytest.mark.parametrize(
    ("level", "bytes_", "flops"), [(6.0, 0, 6000), (3.5, 150, 6750), (2.9, math.inf, math.inf)]
)
def test_what_came_before_counts_among_flops_and_not_among_bytes(
    level: float, bytes_: float, flops: float
) -> None:
    own = {"own_steps": 20, "own_bytes": 400, "own_flops": 2000}
    going_on = result_of([[20, 4.0], [35, 3.0], [40, 3.1]], **own)
    assert levels.spent_to(going_on, level) == pytest.approx((bytes_, flops))


def test_the_table_says_what_each_arm_spent_to_the_level_of_the_first_runs(folder: Path) -> None:
    """With a level that all reach at once, and one that nobody reaches."""
    for within, reached in ((100.0, True), (1e-9, False)):
        write(folder, arms=FIRST_ARMS, seeds=[0, 1, 2], within=within)
        for name in FIRST_ARMS:
            run(folder, name)
        asked = study.read(folder)
        found = table.rows(table.read_arms(asked), within)
        of_first = found["bits_per_byte_before"].dropna().unique()
        assert sorted(found["level"].unique()) == pytest.approx(sorted(of_first + within))
        summary = table.write(asked)
        at = summary.set_index("arm")
        if reached:
            assert at.loc["migrated", "bytes_to_level"] == 0
            assert at.loc["plain", "bytes_to_level"] > 0
            assert at.loc["migrated", "flops_to_level"] > 0
        else:
            assert at.loc["plain", "bytes_to_level"] == math.inf
        assert {"bytes_to_level_verdict", "flops_to_level_verdict"} <= set(summary)


def test_flops_that_an_arm_may_spend_are_those_of_both_its_runs(folder: Path) -> None:
    write(folder, arms=FIRST_ARMS, seeds=[0])
    spent = run(folder, "plain")["points"][0]["flops"]
    write(folder, arms=FIRST_ARMS, seeds=[0], flops=5.0 * spent)
    plain, grown = (run(folder, name)["points"][0] for name in ("plain", "grown"))
    assert plain["steps"] == 20
    assert grown["own_steps"] < 14
    assert abs(grown["flops"] / plain["flops"] - 1) < 0.06


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"sweep_seeds": [100]}, "sweeps with 1 seed"),
        ({"sweep_seeds": [7, 7]}, "sweeps with 1 seed"),
        ({"sweep_seeds": [0, 100]}, "seeds that are reported as well"),
    ],
)
def test_a_sweep_needs_seeds_of_its_own(folder: Path, changes: Any, words: str) -> None:
    write(folder, **changes)
    with pytest.raises(UserError, match=words):
        run(folder, "swept")
    assert study.read(folder).arm("plain").sweep_seeds == changes["sweep_seeds"]  # it sweeps none
    write(folder, **changes, seeds=[])  # nothing is chosen, so nothing by luck
    assert study.read(folder).arm("swept").sweep_seeds == changes["sweep_seeds"]


def test_a_study_whose_every_run_diverged_is_a_table_all_the_same(folder: Path) -> None:
    broken = {**SHARED, "train.clip": 0.0, "optimizers.adamw.learning_rate": 1e38}
    write(folder, changes=broken, seeds=[0])
    assert run(folder, "plain")["points"][0]["diverged"].startswith("diverged at step ")
    summary = table.write(study.read(folder))
    assert summary["bits_per_byte"].isna().all()
    assert summary["diverged"].tolist() == [1]
    shown = CliRunner().invoke(cli.app, ["study", "study", "--arm", "plain"])
    assert shown.exit_code == 0, shown.output


def test_the_test_split_is_sealed_for_studies_too(folder: Path) -> None:
    record = run(folder, "plain")
    assert "test" not in record["points"][0]
    columns = table.rows({"plain": records.read(study.read(folder).points("plain"))})
    assert not [column for column in columns if "test" in str(column)]


def test_what_was_run_is_not_run_again_and_another_seed_is(folder: Path, ran: list[int]) -> None:
    first = run(folder, "plain")
    assert run(folder, "plain") == first
    assert ran == [0, 1]
    shutil.rmtree(".scratch")  # as in a fresh clone: the arm's file is enough
    write(folder, seeds=[0, 1, 2])
    more = run(folder, "plain")
    assert more["points"][:2] == first["points"]
    assert ran == [0, 1, 2]
    (folder / "points" / "plain.json").unlink()  # as where it was stopped: what is kept is enough
    shutil.rmtree(".scratch")
    run(folder, "plain")
    (folder / "points" / "plain.json").unlink()
    run(folder, "plain")
    assert ran == [0, 1, 2, 0, 1, 2]


def used_files(arm: str, folder: Path) -> set[str]:
    return set(run(folder, arm)["made"]["code"])


def test_the_code_of_a_point_is_what_its_run_uses_no_more_and_no_less(
    folder: Path, ran: list[int]
) -> None:
    code = used_files("plain", folder)
    parts = "src/lmlab/training/optimizers/adamw.py", "src/lmlab/data/tokenizers/character.py"
    loop = "src/lmlab/training/loop.py", "src/lmlab/experiments/stages/train.py"
    assert code.issuperset([*parts, *loop, "src/lmlab/experiments/studies/point.py"])
    unused = (
        *("src/lmlab/training/optimizers/lion.py", "src/lmlab/data/tokenizers/bpe.py"),
        *("src/lmlab/cli/runs.py", "src/lmlab/experiments/studies/table.py"),
        *("src/lmlab/experiments/preflight.py", "src/lmlab/evaluation/measures/induction.py"),
    )
    assert code.isdisjoint(unused)
    assert "src/lmlab/data/tokenizers/byte.py" in used_files("bytes", folder)


@pytest.mark.parametrize(
    ("name", "value", "reason"),
    [
        ("train.clip", 0.5, "params: train.clip was 1.0, is 0.5"),
        ("optimizers.adamw.beta1", 0.8, "params: optimizers.adamw.beta1 was 0.9, is 0.8"),
        ("optimizers.lion.beta1", 0.8, ""),  # which no arm uses
        ("evaluate.temperature", 0.5, ""),
        ("train.steps", 9, ""),  # which the study sets itself
    ],
)
def test_a_key_that_the_study_takes_from_the_project_makes_its_points_stale_when_it_changes(
    folder: Path, ran: list[int], name: str, value: float, reason: str
) -> None:
    run(folder, "plain")
    assert publish.check("study", quick=False)[0] == "study: swept: it has not been run"
    assert running.stale(study.read(folder), "plain", CORPUS) == []
    tree = params.changed(params.read(), {name: value})
    Path("params.yaml").write_text(json.dumps(tree))
    assert running.stale(study.read(folder), "plain", CORPUS) == ([reason] if reason else [])
    run(folder, "plain")
    assert ran == ([0, 1, 0, 1] if reason else [0, 1])
    assert running.stale(study.read(folder), "plain", CORPUS) == []


def test_another_text_or_another_code_or_version_makes_points_stale(
    folder: Path, ran: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    run(folder, "plain")
    now = making.making(study.read(folder).tree("plain"), set(), 0.0, CORPUS)
    assert making.differences(now, now) == []
    file = "src/lmlab/training/step.py"
    edited = now.model_copy(update={"code": {**now.code, file: "0"}})
    assert making.differences(now, edited) == [f"code: {file}"]
    fewer = now.model_copy(update={"code": {key: now.code[key] for key in now.code if key != file}})
    assert making.differences(now, fewer) == []  # what used it would have changed as well
    assert making.differences(fewer, now) == [f"code: {file}"]
    newer = now.model_copy(update={"versions": {**now.versions, "torch": "9.9"}})
    torch_version = now.versions["torch"]
    assert making.differences(now, newer) == [f"torch {torch_version}, now 9.9"]
    other_text = now.model_copy(update={"corpus": {**now.corpus, "train": "0"}})
    assert making.differences(now, other_text) == ["the text is another one"]
    no_text = now.model_copy(update={"corpus": {}})
    assert making.differences(now, no_text) == []  # a clone that has not downloaded it yet
    elsewhere = now.model_copy(update={"processor": "another"})
    assert making.differences(now, elsewhere) == []  # no fault of the points
    keys = {making.key(made, {}, 0) for made in (now, edited, newer, other_text, elsewhere)}
    assert len(keys) == 5
    write(folder, seeds=[0, 1, 2])
    assert running.stale(study.read(folder), "plain", CORPUS) == ["seed 2 is missing"]


@pytest.mark.parametrize("spoil", ["flip", "cut", "delete"])
def test_a_kept_result_that_is_not_whole_is_made_again(
    spoil: str, folder: Path, ran: list[int]
) -> None:
    first = run(folder, "plain")
    (folder / "points" / "plain.json").unlink()
    kept = sorted(Path(".scratch/points").iterdir())[0]
    content = kept.read_text()
    kept.write_text({"flip": content.replace("2.5", "2.4"), "cut": content[:-9]}.get(spoil, ""))
    if spoil == "delete":
        kept.unlink()
    assert run(folder, "plain") == first
    assert len(ran) == 3
    arm = folder / "points" / "plain.json"
    arm.write_text(arm.read_text().replace("2.5", "2.4"))
    with pytest.raises(UserError, match=r"plain.json is missing or damaged"):
        table.write(study.read(folder))


def test_side_by_side_is_as_one_after_the_other(folder: Path) -> None:
    alone = run(folder, "plain")
    (folder / "points" / "plain.json").unlink()
    shutil.rmtree(".scratch")
    write(folder, processes=2)
    both = run(folder, "plain")
    for first, second in zip(alone["points"], both["points"], strict=True):
        assert {key: value for key, value in first.items() if "second" not in key} == {
            key: value for key, value in second.items() if "second" not in key
        }


def test_flops_decide_how_many_steps_there_are(folder: Path) -> None:
    plain = run(folder, "plain")["points"][0]
    write(folder, flops=3 * plain["flops"])
    more = run(folder, "plain")["points"][0]
    assert more["steps"] == 3 * plain["steps"]
    assert more["flops"] == pytest.approx(3 * plain["flops"])


def test_the_quick_form_takes_the_place_of_what_it_names_and_lies_apart(folder: Path) -> None:
    write(folder, quick={"seeds": [5], "changes": {"train.steps": 2}})
    points_of_quick = run(folder, "plain", quick=True)["points"]
    assert [(point["seed"], point["steps"]) for point in points_of_quick] == [(5, 2)]
    assert (folder / "tried" / "points" / "plain.json").exists()
    assert not (folder / "points").exists()
    assert study.read(folder, quick=True).params.changes["train.batch"] == 4
    assert study.read(folder).params.seeds == [0, 1]


def test_every_value_of_the_key_each_is_an_arm_with_the_shared_sweep(
    folder: Path, ran: list[int]
) -> None:
    write(folder, each="train.optimizer", sweep={"train.steps": [2, 3]}, seeds=[])
    record = run(folder, "lion")
    steps = [point["at"]["train.steps"] for point in record["points"]]
    assert steps == [2, 2, 3, 3]
    assert study.read(folder).arm("swept").changes == {"train.optimizer": "swept"}
    assert study.read(folder).arm("swept").sweep == ARMS["swept"]["sweep"]
    with pytest.raises(UserError, match="there is no 'lyon' in optimizers; did you mean lion"):
        run(folder, "lyon")


def test_mistakes_are_told_and_leave_nothing(folder: Path) -> None:
    with pytest.raises(UserError, match="arms has no 'plian'; did you mean plain"):
        run(folder, "plian")
    with pytest.raises(UserError, match="heads do not divide"):
        run(folder, "wrong")
    with pytest.raises(UserError, match=r"there is no study 'stdy' below studies/"):
        publish.find("stdy")
    write(folder, sede=3)
    with pytest.raises(UserError, match=r"study\.sede is not a known key"):
        run(folder, "plain")
    assert not (folder / "points").exists()


def test_all_runs_are_collected_in_one_table(folder: Path, ran: list[int]) -> None:
    with pytest.raises(UserError, match="has no points; run `lmlab study study`"):
        table.write(study.read(folder))
    run(folder, "plain")
    run(folder, "bytes")
    table.write(study.read(folder))
    results = (folder / "results.csv").read_bytes()
    assert results.count(b"\n") == 5
    table.write(study.read(folder))
    assert (folder / "results.csv").read_bytes() == results


def test_an_arm_that_is_none_any_more_leaves_the_table_and_is_named(
    folder: Path, ran: list[int], capsys: pytest.CaptureFixture[str]
) -> None:
    run(folder, "plain")
    run(folder, "bytes")
    assert table.write(study.read(folder))["arm"].tolist() == ["bytes", "plain"]
    write(folder, arms={"plain": {}})
    assert table.write(study.read(folder))["arm"].tolist() == ["plain"]
    assert "bytes.json is left out: the study has no such arm" in capsys.readouterr().out
    (line,) = publish.check("study", quick=False)
    assert line.endswith("bytes.json: the study has no such arm; delete the file")


@pytest.mark.parametrize(
    ("changed", "reason"),
    [
        (
            {"params": {"train.clip": 0.5}},
            "params: train.clip is 0.5 for one and 1.0 for",
        ),
        ({"code": {"src/lmlab/training/step.py": "0"}}, "code: src/lmlab/training/step.py"),
        ({"versions": {"torch": "9.9"}}, "versions"),
        ({"corpus": {"train": "0"}}, "corpus"),
        ({"processor": "another"}, "processor"),
        ({"flops": 5.0}, "flops"),
        ({"params": {"tokenizer.name": "bpe"}}, ""),  # the arm's own change
        ({"code": {"src/lmlab/data/tokenizers/byte.py": "0"}}, ""),  # its own part
    ],
)
def test_points_that_differ_in_more_than_their_arms_changes_go_into_no_table_together(
    folder: Path, ran: list[int], changed: dict[str, Any], reason: str
) -> None:
    run(folder, "plain")
    record = run(folder, "bytes")
    for name, value in changed.items():
        made = record["made"]
        made[name] = {**made[name], **value} if isinstance(value, dict) else value
    (folder / "points" / "bytes.json").write_text(json.dumps(seal(record)))
    if not reason:
        assert len(table.write(study.read(folder))) == 2
        return
    with pytest.raises(UserError) as refused:
        table.write(study.read(folder))
    assert reason in str(refused.value)
    assert "go into no table together" in str(refused.value)


def test_points_that_do_not_say_what_they_were_made_with_are_stale_and_in_no_table(
    folder: Path, ran: list[int]
) -> None:
    record = run(folder, "plain")
    del record["made"]
    (folder / "points" / "plain.json").write_text(json.dumps(seal(record)))
    assert running.stale(study.read(folder), "plain", CORPUS) == [running.NEVER_SAID]
    with pytest.raises(UserError, match="do not say what they were made with"):
        table.write(study.read(folder))
    run(folder, "plain")
    assert len(table.write(study.read(folder))) == 1


def test_progress_names_the_arm_and_the_number(
    folder: Path, ran: list[int], capsys: pytest.CaptureFixture[str]
) -> None:
    publish.run(folder, ["swept", "plain"], quick=False)
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "study: arm 1 of 2: swept"
    assert lines[1].startswith("study: swept: 1 of 6: optimizers.adamw.learning_rate 0.004, seed")
    assert lines[-1] == "study: plain: 2 of 2: seed 1: 2.5010 bits/byte"


def test_each_row_of_the_summary_has_a_verdict_against_the_baseline(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def measured(
        tree: params.Tree, flops: float, corpus: Path, first: points.First | None = None
    ) -> dict[str, Any]:
        worse = 0.3 if tree["tokenizer"]["name"] == "byte" else 0.0
        bits = 2.5 + worse + tree["train"]["seed"] / 1000 + worse * tree["train"]["seed"] / 100
        return {"validation": {"bits_per_byte": bits, "nats_per_token": bits}}

    monkeypatch.setattr(points, "run_quietly", measured)
    write(folder, seeds=list(range(6)))
    for name in ("plain", "bytes"):
        run(folder, name)
    rows = table.write(study.read(folder)).set_index("arm")
    assert rows.loc["bytes", "verdict"] == "worse"
    assert rows.loc["bytes", "difference"] == pytest.approx(0.3075)
    assert 0.2999 <= rows.loc["bytes", "difference_low"] <= 0.3075
    assert 0.3075 <= rows.loc["bytes", "difference_high"] <= 0.3151
    assert rows["verdict"].isna()["plain"]
    write(folder, seeds=[0, 1])
    for name in ("plain", "bytes"):
        run(folder, name)
    assert table.write(study.read(folder)).set_index("arm").loc["bytes", "verdict"] == (
        "too few seeds"
    )


def test_the_quick_form_may_give_an_arm_another_sweep_and_other_seeds(
    folder: Path, ran: list[int]
) -> None:
    other = {"swept": {"sweep": {"train.steps": [2, 3]}, "sweep_seeds": [4, 5]}}
    write(folder, quick={"arms": other}, seeds=[])
    points_of_quick = run(folder, "swept", quick=True)["points"]
    swept = [(point["seed"], point["at"]["train.steps"]) for point in points_of_quick]
    assert swept == [(4, 2), (5, 2), (4, 3), (5, 3)]
    assert study.read(folder).arm("swept").sweep_seeds == [100, 101]
    assert study.read(folder).arm("swept").sweep == ARMS["swept"]["sweep"]
    write(folder, quick={"arms": {"swpt": {}}})
    with pytest.raises(UserError, match=r"quick\.arms\.swpt is no arm; did you mean swept"):
        study.read(folder, quick=True)


def test_a_study_may_have_a_corpus_of_its_own_which_is_made_when_it_is_asked_for(
    folder: Path,
) -> None:
    own = {
        "download.corpus": "grammar",
        "corpora.grammar.documents": 6,
        "corpora.grammar.sentences": 8,
    }
    on_the_project = run(folder, "plain")["points"][0]
    write(folder, changes={**SHARED, **own})
    asked = study.read(folder)
    corpus = running.make_corpus(asked)
    assert corpus == folder / "corpus"
    assert json.loads((corpus / "manifest.json").read_text())["corpus"] == "grammar"
    before = (corpus / "manifest.json").stat().st_mtime_ns
    assert running.make_corpus(asked) == corpus
    assert (corpus / "manifest.json").stat().st_mtime_ns == before
    with workers.here(1) as made:
        (own_point, *_) = running.run_arm(asked, "plain", corpus, made).points
    assert own_point.result.values()["validation"] != on_the_project["validation"]
    write(folder, changes={**SHARED, **own, "corpora.grammar.documents": 9})
    running.make_corpus(study.read(folder))
    assert (corpus / "manifest.json").stat().st_mtime_ns != before


def test_without_a_corpus_it_is_said_what_to_run(folder: Path) -> None:
    shutil.rmtree("data")
    with pytest.raises(UserError, match="run `dvc repro download` first"):
        publish.run(folder, [], quick=False)


def test_the_template_runs_as_it_is(folder: Path) -> None:
    shutil.copytree(small.PROJECT / "studies" / "template", "mine")
    tiny = {"train.steps": 3, "train.batch": 2, "train.context": 8, "models.transformer.width": 16}
    blocks: dict[str, Any] = dict(params.read(Path("mine/params.yaml")))
    blocks["study"] = {**blocks["study"], "processes": 1, "seeds": [0]}
    blocks["study"]["changes"] |= {
        **tiny,
        "evaluate.stride": 8,
        "schedules.linear.warmup": 1,
        "schedules.cosine.warmup": 1,
    }
    Path("mine/params.yaml").write_text(json.dumps(blocks))
    shown = CliRunner().invoke(cli.app, ["study", "mine", "--arm", "linear"])
    assert shown.exit_code == 0, shown.output
    assert (Path("mine") / "summary.csv").exists()
    assert (Path("mine") / "charts" / "final.svg").exists()


@pytest.mark.parametrize("name", STUDIES)
def test_a_published_study_names_keys_there_are_and_has_points_of_its_arms_alone(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(small.PROJECT)
    folder = publish.find(name)
    for quick in (False, True):
        asked = study.read(folder, quick)
        for arm in asked.arms:
            tree = asked.tree(arm)
            for values in asked.arm(arm).grid:
                params.changed(tree, values)
    if name != publish.TEMPLATE:
        files = {path.stem for path in (folder / "points").glob("*.json")}
        assert files == set(study.read(folder).arms)
