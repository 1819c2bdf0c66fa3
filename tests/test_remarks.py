"""What is allowed and hardly wanted is said in one line, to whom it concerns; and nothing is said
of the default.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import small
from typer.testing import CliRunner

from lmlab.cli import app
from lmlab.core import params
from lmlab.core.params import Tree
from lmlab.data import collect as collecting
from lmlab.data.collect import DownloadParams
from lmlab.data.corpora.base import Corpus, Document
from lmlab.experiments import preflight, remarks

pytestmark = pytest.mark.usefixtures("own_scratch")


@pytest.fixture(autouse=True)
def two_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.cpu_count", lambda: 2)


SAID: list[tuple[dict[str, Any], str, str]] = [
    ({"train.threads": 1000}, "train", "train.threads is 1,000, and there are 2 cores"),
    ({"evaluate.threads": 3}, "evaluate", "evaluate.threads is 3, and there are 2 cores"),
    ({"probe.threads": 3}, "probe", "probe.threads is 3, and there are 2 cores"),
    ({"shard.processes": 64}, "shard", "shard.processes is 64, and there are 2 cores"),
    (
        {"schedules.linear.warmup": 1200},
        "train",
        "schedules.linear.warmup is 1,200, and train.steps 1,200",
    ),
    ({"train.steps": 40}, "train", "schedules.linear.warmup is 40, and train.steps 40"),
    ({"train.optimizer": "schedule_free"}, "train", "train.schedule: linear lets it fall as well"),
    (
        {"train.optimizer": "schedule_free", "train.schedule": "cosine"},
        "train",
        "train.schedule: cosine lets it fall",
    ),
    (
        {"train.optimizer": "schedule_free", "train.schedule": "warmup_stable_decay"},
        "train",
        "lets it fall as well",
    ),
    (
        {"train.validate_every": 1201},
        "train",
        "train.validate_every is 1,201, and train.steps 1,200",
    ),
    ({"train.snapshots": 1201}, "train", "train.snapshots is 1,201, and train.steps 1,200"),
    ({"train.checkpoint_seconds": 0.0}, "train", "train.checkpoint_seconds is 0"),
    ({"train.clip": 1e-9}, "train", "train.clip is 1e-09"),
]
UNSAID: list[dict[str, Any]] = [
    {},
    {"train.threads": 2, "evaluate.threads": 1, "shard.processes": 2},
    {"schedules.linear.warmup": 1199},
    {"train.optimizer": "schedule_free", "train.schedule": "constant"},
    {"train.optimizer": "schedule_free", "schedules.linear.final": 1.0},
    {
        "train.optimizer": "schedule_free",
        "train.schedule": "warmup_stable_decay",
        "schedules.warmup_stable_decay.cooldown": 0.0,
    },
    {"train.validate_every": 1200, "train.snapshots": 1200},
    {"train.validate_every": 0, "train.clip": 0.0},
]


@pytest.mark.parametrize(("changes", "stage", "words"), SAID)
def test_what_hardly_anybody_wants_is_said_once(
    changes: dict[str, Any], stage: str, words: str, tree: Tree
) -> None:
    changed = params.changed(tree, changes)
    preflight.check(changed)
    (said,) = [(of, line) for of, line in remarks.remarks(changed) if words in line]
    assert said[0] == stage
    assert "\n" not in said[1]


@pytest.mark.parametrize("changes", UNSAID)
def test_of_what_may_be_meant_nothing_is_said(changes: dict[str, Any], tree: Tree) -> None:
    assert list(remarks.remarks(params.changed(tree, changes))) == []


def test_check_says_all_and_a_stage_its_own(
    tree: Tree, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    changed = params.changed(tree, {"train.threads": 1000, "probe.threads": 1000})
    monkeypatch.chdir(small.PROJECT)
    monkeypatch.setattr(params, "read", lambda: changed)
    shown = CliRunner().invoke(app, ["check"])
    assert shown.exit_code == 0
    assert shown.stderr.count("warning: params.yaml: ") == 2
    remarks.say(changed, "train")
    printed = capsys.readouterr()
    assert printed.err.count("warning: ") == 1
    assert printed.out == ""


class OneText(Corpus):
    source, licence = "here", "none"

    def __init__(self, text: str) -> None:
        self.text = text

    def documents(self) -> Iterator[Document]:
        yield Document("text", [self.text])

    def facts(self) -> dict[str, Any]:
        return {}


@pytest.mark.parametrize(
    ("length", "changes", "words"),
    [
        (
            2000,
            {},
            ["the validation split has only 200 bytes", "the test split has only 100 bytes"],
        ),
        (30, {"test": 0.01}, ["the validation split has only 3 bytes", "the test split is empty"]),
        (2000, {"test": 0.0}, ["the validation split has only 200 bytes"]),
        (40_000, {}, []),
    ],
)
def test_splits_that_are_hardly_there_are_told(
    length: int,
    changes: dict[str, Any],
    words: list[str],
    tree: Tree,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    wanted = params.section(
        {"download": {**tree["download"], "corpus": "local", **changes}}, "download", DownloadParams
    )
    collecting.build(wanted, OneText("ab" * (length // 2)), tmp_path / "corpus")
    said = capsys.readouterr().err.splitlines()
    assert len(said) == len(words)
    assert all(part in line for part, line in zip(words, said, strict=True))
