"""What long work prints where nobody watches a terminal: a line every few seconds, one at the end,
and how long it takes.
"""

from collections.abc import Callable

import pytest

from lmlab.core import progress
from lmlab.core.progress import ProgressBar


@pytest.fixture
def passes(monkeypatch: pytest.MonkeyPatch) -> Callable[[float], None]:
    """Let so many seconds go by."""
    now = [100.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])

    def wait(seconds: float) -> None:
        now[0] += seconds

    return wait


def test_a_line_is_printed_every_five_seconds_and_one_at_the_end(
    passes: Callable[[float], None], capsys: pytest.CaptureFixture[str]
) -> None:
    with ProgressBar("train", 1000, "steps", done=100) as bar:
        for _ in range(11):
            passes(1)
            bar.advance(50, "loss 2")
    assert capsys.readouterr().out.splitlines() == [
        "train: 350/1,000 steps, 5 s, 13 s left, loss 2",
        "train: 600/1,000 steps, 10 s, 8 s left, loss 2",
        "train: 650/1,000 steps, 11 s, 7 s left, loss 2",
    ]


def test_nothing_is_said_twice_and_nothing_at_the_end_of_work_that_failed(
    passes: Callable[[float], None], capsys: pytest.CaptureFixture[str]
) -> None:
    with ProgressBar("read", 0, "bytes") as bar:
        passes(5)
        bar.advance(7)
    assert capsys.readouterr().out.splitlines() == ["read: 7 bytes, 5 s"]
    bar = ProgressBar("read", 9, "bytes")
    bar.advance(3)
    bar.__exit__(ValueError, ValueError("no"), None)
    assert capsys.readouterr().out == ""
