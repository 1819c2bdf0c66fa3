"""Which stages DVC leaves out of its run-cache; that they are found there all the same is in
tests/pipeline.
"""

from pathlib import Path

import pytest
import small
from ruamel.yaml import YAML

from lmlab.experiments import runcache

STAGES = YAML(typ="safe").load(small.PROJECT / "dvc.yaml")["stages"]
DVC_YAML = """\
stages:
  cached: {cmd: x, outs: [data/x]}
  metric:
    cmd: x
    outs: [data/x]
    metrics: [{m.json: {cache: false}}]
    plots: [{p.csv: {cache: false}}]
  page: {cmd: x, outs: [data/x, {page.md: {cache: false}}]}
  nothing: {cmd: x}
"""


@pytest.mark.parametrize(
    ("stage", "left_out"),
    [("cached", False), ("metric", False), ("page", True), ("nothing", False)],
)
def test_dvc_leaves_out_what_git_keeps_unless_it_is_a_metric_or_a_plot(
    tmp_path: Path, stage: str, left_out: bool
) -> None:
    (tmp_path / "dvc.yaml").write_text(DVC_YAML)
    assert runcache.is_left_out(tmp_path / "dvc.yaml", stage) == left_out
    assert not runcache.is_left_out(tmp_path / "dvc.yaml", "unknown")
    assert not runcache.is_left_out(tmp_path / "missing.yaml", stage)


def test_of_the_projects_own_stages_evaluate_alone_keeps_itself() -> None:
    assert [name for name in STAGES if runcache.is_left_out(small.PROJECT / "dvc.yaml", name)] == [
        "evaluate"
    ]


def test_outside_of_dvc_there_is_nothing_to_keep(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "dvc.yaml").write_text(DVC_YAML)
    for stage in ("", "studies/x/dvc.yaml:page"):
        monkeypatch.setenv("DVC_STAGE", stage)
        runcache.keep()  # no DVC repository is here: opening one would fail
    monkeypatch.setenv("DVC_STAGE", "page")
    runcache.keep()  # nor does that stop a stage
    assert not (tmp_path / ".dvc").exists()
