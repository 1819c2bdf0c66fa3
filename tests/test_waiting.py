"""Waiting for the queue ends when nothing is left in it, and says what came of it."""

from collections.abc import Iterator

import pytest

from lmlab.core.errors import UserError
from lmlab.experiments.search import waiting
from lmlab.experiments.search.waiting import Books


def turning(*states: Books) -> Iterator[Books]:
    yield from states


def test_it_waits_until_nothing_is_queued_or_running(capsys: pytest.CaptureFixture[str]) -> None:
    states = turning(
        Books(2, ("old",), 4, ("long ago",)),
        Books(1, ("one",), 5, ("long ago",)),
        Books(0, ("two",), 5, ("long ago", "one")),
        Books(0, (), 6, ("long ago", "one")),
    )
    before, after = waiting.wait(lambda: next(states), seconds_between_looks=0)
    assert list(states) == []
    assert (before.left, after.left) == (3, 0)
    line = waiting.summary(before, after)
    assert line.startswith("2 experiments finished, 1 failed (one); see `dvc queue logs NAME`")
    assert "queue: 3/3 experiments" in " ".join(capsys.readouterr().out.split())


def test_an_empty_queue_is_not_waited_for() -> None:
    empty = Books(0, (), 7, ("old",))
    assert waiting.summary(*waiting.wait(lambda: empty)) == "nothing is queued or running"


def test_a_queue_that_nobody_works_at_is_told_how_to_start(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(waiting, "PATIENCE", 0.0)
    with pytest.raises(UserError, match=r"3 experiments are queued .* run `dvc queue start`"):
        waiting.wait(lambda: Books(3, (), 0, ()), seconds_between_looks=0.01)
