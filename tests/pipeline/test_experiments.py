"""DVC as its users use it: experiments in the workspace, queued and temporary, comparisons,
remotes.
"""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.pipeline


def shown(workspace: Any) -> dict[str, dict[str, Any]]:
    """`dvc exp show` as rows by experiment name."""
    rows = json.loads(workspace.run("dvc", "exp", "show", "--json").stdout)
    experiments: dict[str, dict[str, Any]] = {}
    for row in rows:
        for experiment in row.get("experiments") or []:
            experiments[experiment["name"]] = experiment["revs"][0]["data"]
    return experiments


def bits(data: dict[str, Any]) -> float:
    return float(data["metrics"]["results/metrics.json"]["data"]["validation"]["bits_per_byte"])


OWN = "import sys; sys.path.insert(0, 'src'); from lmlab import cli; cli.main()"


UNFINISHED = """import json, sys; sys.path.insert(0, 'src')
from lmlab.experiments.compare.history import unfinished
print(json.dumps([(one.name, one.state, one.params['train.clip']) for one in unfinished()]))
"""


def test_experiments_in_the_workspace_queued_and_temporary(workspace: Any) -> None:
    """Each of the three ways runs its own copy of code and params, and compare reads what finished
    of them.
    """
    before = workspace.json("results/metrics.json")
    source = workspace.path("src/lmlab/evaluation/evaluate.py")
    text = source.read_text()
    chosen = "metrics(record, params.metrics)"
    assert chosen in text
    source.write_text(text.replace(chosen, 'metrics(record, ["window", *params.metrics])'))
    workspace.run(
        "dvc", "exp", "run", "--temp", "-n", "temporary", "-S", "train.optimizer=lion", "evaluate"
    )
    source.write_text(text)
    workspace.run("dvc", "exp", "run", "--queue", "-n", "broken", "-S", "train.clip=-1.0")
    workspace.run(
        "dvc", "exp", "run", "--queue", "-n", "queued", "-S", "train.optimizer=lion", "evaluate"
    )
    workspace.run("dvc", "queue", "start", "-j", "1")
    workspace.run("dvc", "queue", "logs", "queued", "--follow")
    assert (
        workspace.json("results/metrics.json") == before
    )  # the workspace is untouched by those two
    workspace.run("dvc", "exp", "run", "-n", "direct", "-S", "train.optimizer=lion", "evaluate")

    rows = shown(workspace)
    measured = {
        name: row["metrics"]["results/metrics.json"]["data"]
        for name, row in rows.items()
        if name != "broken"
    }
    assert set(measured) == {"temporary", "queued", "direct"}
    assert len({bits(rows[name]) for name in measured}) == 1
    assert bits(rows["direct"]) != before["validation"]["bits_per_byte"]
    assert (
        bits(rows["direct"])
        == workspace.json("results/metrics.json")["validation"]["bits_per_byte"]
    )
    # code edited in the workspace is what a temporary experiment runs, though lmlab is installed
    # from elsewhere
    assert ["window" in metrics for metrics in measured.values()].count(True) == 1
    assert "window" in measured["temporary"]

    # the table that README shows, in a terminal of 120 columns: each column whole
    options = ("--only-changed", "--drop", ".*/", "--no-pager", "--hide-failed")
    lines = workspace.run("env", "COLUMNS=120", "dvc", "exp", "show", *options).stdout.splitlines()
    assert {"validation.bits_per_byte", "train.optimizer"} < {*lines[1].split()}
    assert "…" not in lines[1]
    assert max(map(len, lines)) <= 120

    changed = json.loads(workspace.run("dvc", "metrics", "diff", "--json").stdout)
    assert changed["results/metrics.json"]["validation.bits_per_byte"]["diff"] != 0
    specification = workspace.run("dvc", "plots", "diff", "HEAD", "workspace", "--json").stdout
    assert "validation_nats" in specification
    assert "learning_rate" in specification

    (task,) = json.loads(workspace.run("python", "-c", UNFINISHED).stdout)
    assert task == [
        "broken",
        "failed",
        -1.0,
    ]  # as DVC keeps it: compare names it beside the variant that it is of

    refused = workspace.run("python", "-c", OWN, "compare", "broken", check=False)
    assert refused.returncode == 2
    assert "broken is queued, running or failed" in refused.stderr
    compare_a_queued_one(workspace, before["validation"]["bits_per_byte"])


def compare_a_queued_one(workspace: Any, baseline_bits: float) -> None:
    """With the commit it began from, in all that was measured, times among it."""
    compare = ["python", "-c", OWN, "compare"]
    found = json.loads(
        workspace.run(*compare, "HEAD", "queued", "--measure", "all", "--json").stdout
    )
    assert found["baseline"] == {"name": "optimizer=adamw", "runs": ["HEAD"], "diverged": {}}
    (variant,) = found["variants"]
    assert (variant["runs"], variant["differs"]) == (
        ["queued"],
        {"train.optimizer": ["adamw", "lion"]},
    )
    assert variant["unfair"] == []
    by_measure = {verdict["measure"]: verdict for verdict in variant["verdicts"]}
    bits = by_measure["validation.bits_per_byte"]
    assert bits["baseline_mean"] == baseline_bits
    assert bits["words"] == "too few seeds"
    assert (
        by_measure["timing.train.training_seconds"]["variant_mean"] > 0
    )  # though it ran in a folder that is gone

    workspace.set({"train.steps": 9})  # the workspace has moved on, its results have not
    notes = json.loads(workspace.run(*compare, "workspace", "HEAD", "--json").stdout)["notes"]
    assert "train.steps 6 (now 9)" in notes[0]


def test_push_and_pull_bring_a_clone_to_the_same_state(workspace: Any, tmp_path: Path) -> None:
    workspace.run("dvc", "remote", "add", "-d", "shelf", str(tmp_path / "shelf"))
    workspace.run("git", "commit", "-qam", "a remote")
    workspace.run("dvc", "push")
    clone = replace(workspace, folder=tmp_path / "clone")
    workspace.run("git", "clone", "-q", str(workspace.folder), str(clone.folder))
    clone.run("dvc", "pull")
    weights = "data/model/weights.safetensors"
    assert clone.path(weights).read_bytes() == workspace.path(weights).read_bytes()
    assert clone.reruns("--no-run-cache") == set()


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("train.stpes=9", "Could not override 'train.stpes'"),  # DVC's own answer
        ("+train.stpes=9", "train.stpes is not a known key; did you mean steps?"),
        ("train.model=transfomer", "transfomer.py"),  # DVC's own answer: there is no such file
    ],
)
def test_a_bad_override_is_refused_before_any_work(
    workspace: Any, override: str, message: str
) -> None:
    done = workspace.run("dvc", "exp", "run", "--temp", "-S", override, check=False)
    assert done.returncode != 0
    assert message in done.stdout + done.stderr
    assert "Traceback" not in done.stdout + done.stderr
    assert "steps, " not in done.stdout, "training had begun"
