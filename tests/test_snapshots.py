"""What a run leaves to be looked at: whole, in the right places, and of no effect on the run
itself.
"""

import json
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import pytest
import test_training
import torch
from hypothesis import given
from hypothesis import strategies as st
from test_training import Corpus, train, train_until

from lmlab.core.errors import UserError
from lmlab.model.models import base as models
from lmlab.training import snapshots

corpus = test_training.corpus  # the fixture


@given(steps=st.integers(1, 3000), count=st.integers(0, 12))
def test_snapshots_are_taken_from_the_first_step_to_the_last_evenly_and_never_twice(
    steps: int, count: int
) -> None:
    taken = snapshots.positions(steps, count)
    assert len(taken) == min(count, steps)
    assert taken == sorted(set(taken))
    if count:
        assert taken[-1] == steps - 1
    if count > 1:
        assert taken[0] == 0
        gaps = [later - earlier for earlier, later in pairwise(taken)]
        assert max(gaps, default=0) - min(gaps, default=0) <= 1


def test_the_default_run_has_a_snapshot_at_every_third() -> None:
    assert snapshots.positions(1300, 4) == [0, 433, 866, 1299]


@pytest.mark.parametrize("optimizer", ["adamw", "schedule_free", "muon"])
def test_snapshots_change_no_bit_of_a_run(corpus: Corpus, optimizer: str) -> None:
    on, off = (
        train(corpus, f"run{count}", optimizer=optimizer, dropout=0.2, snapshots=count)
        for count in (3, 0)
    )
    assert [name for name in on if name.startswith("snapshots/step")]
    assert [name for name in off if name.startswith("snapshots/")] == [
        "snapshots/SHA256SUMS",
        "snapshots/run.json",
    ]
    for name in off:
        assert name.startswith("snapshots/") or off[name] == on[name]


def test_a_snapshot_holds_the_weights_around_its_step(corpus: Corpus) -> None:
    train(corpus, "few", snapshots=3)
    train(corpus, "every", snapshots=7)
    record, few = snapshots.read(Path("few/snapshots"))
    states = list(snapshots.read(Path("every/snapshots"))[1])
    assert [state["step"] for state in states] == list(range(7))
    assert [state["tokens"] for state in states] == [step * 4 * 8 for step in range(7)]
    for earlier, later in pairwise(states):
        assert all(
            torch.equal(earlier["after"][key], later["model"][key]) for key in earlier["after"]
        )
        assert any(
            not torch.equal(earlier["model"][key], earlier["after"][key])
            for key in earlier["after"]
        )
    for state in few:
        assert all(
            torch.equal(state["model"][key], states[state["step"]]["model"][key])
            for key in state["model"]
        )
    model, saved = models.load(Path("few/model"), torch.device("cpu"))
    assert all(
        torch.equal(states[-1]["after"][key], value) for key, value in model.state_dict().items()
    )
    assert record["parts"]["model"] == saved.model
    assert record["parts"]["learning_rule"]["name"] == "backprop"


def test_the_rate_in_a_snapshot_is_that_of_its_step(corpus: Corpus) -> None:
    written = train(corpus, "run", snapshots=7, log_every=1)
    log = [json.loads(line) for line in written["training/log.jsonl"].splitlines()]
    rates = [row["learning_rate"] for row in log if "learning_rate" in row]
    assert [state["learning_rate"] for state in snapshots.read(Path("run/snapshots"))[1]] == rates


def test_a_run_whose_earlier_snapshots_are_gone_begins_again(
    corpus: Corpus,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    whole = train(corpus, "whole")
    train_until(6, corpus, "stopped", monkeypatch)
    for path in Path(".scratch").glob("*/snapshots/*00.safetensors"):
        path.unlink()
    assert train(corpus, "stopped") == whole


def test_a_checkpoint_needs_the_snapshots_of_all_steps_before_it_and_of_no_later_one(
    tmp_path: Path,
) -> None:
    due = [0, 3, 6]
    for taken in (0, 3):
        assert not snapshots.has_all(
            tmp_path, due, taken + 1
        )  # the run stands at the step after it: it should be there
        snapshots.write(tmp_path, {"step": taken})
        assert all(snapshots.has_all(tmp_path, due, step) for step in range(taken + 1, taken + 4))
    assert not snapshots.has_all(tmp_path, due, 7)


def flip_a_bit(path: Path, at: float = 0.5) -> None:
    content = bytearray(path.read_bytes())
    content[int(at * (len(content) - 1))] ^= 1
    path.write_bytes(bytes(content))


@pytest.mark.parametrize(
    "spoil", [Path.unlink, lambda path: path.write_bytes(path.read_bytes()[:-5]), flip_a_bit]
)
def test_a_snapshot_that_is_not_whole_is_named(
    corpus: Corpus, spoil: Callable[[Path], object]
) -> None:
    train(corpus, "run")
    spoil(Path("run/snapshots/step-00000003.safetensors"))
    with pytest.raises(
        UserError,
        match=r"step-00000003\.safetensors is missing or damaged; run `dvc repro --force train`",
    ):
        list(snapshots.read(Path("run/snapshots"))[1])
