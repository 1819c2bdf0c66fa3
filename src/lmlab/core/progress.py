"""Progress of long-running work: a live bar in a terminal, elsewhere a line every few seconds."""

import sys
import time
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

SECONDS_BETWEEN_LINES = 5.0


class ProgressBar:
    """`with ProgressBar("train", total=2000, unit="steps") as bar: bar.advance(1, "loss 2.31")`.

    A `total` of 0 means that it is unknown. `done` units were finished before, as in a resumed run.
    """

    def __init__(self, title: str, total: int, unit: str, done: int = 0) -> None:
        self.title, self.total, self.unit = title, total, unit
        self.done = done
        self.note = ""
        self._console = Console()
        self._live: Progress | None = None
        if self._console.is_terminal:
            columns = (
                TextColumn("{task.description}"),
                BarColumn(bar_width=24),
                MofNCompleteColumn(),
                TextColumn(unit),
                TimeElapsedColumn(),
                TextColumn("left"),
                TimeRemainingColumn(),
                TextColumn("{task.fields[note]}"),
            )
            self._live = Progress(*columns, console=self._console)
            self._task = self._live.add_task(title, total=total or None, completed=done, note="")
        self._started_at = self._printed_at = time.monotonic()
        self._done_at_start = self._done_when_printed = done

    def __enter__(self) -> Self:
        if self._live:
            self._live.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._live:
            self._live.stop()
        elif kind is None and self.done != self._done_when_printed:
            self._print()

    def advance(self, amount: int, note: str | None = None) -> None:
        """Count `amount` more units as done; `note` is shown after the bar until the next one."""
        self.done += amount
        if note is not None:
            self.note = note
        if self._live:
            self._live.update(self._task, completed=self.done, note=self.note)
        elif time.monotonic() - self._printed_at >= SECONDS_BETWEEN_LINES:
            self._print()

    def say(self, text: str) -> None:
        """Print text above the bar."""
        if self._live:
            self._live.console.print(text, markup=False, highlight=False)
        else:
            print(text, flush=True)

    def _print(self) -> None:
        self._printed_at = time.monotonic()
        self._done_when_printed = self.done
        elapsed = self._printed_at - self._started_at
        rate = (self.done - self._done_at_start) / elapsed if elapsed > 0 else 0.0
        line = f"{self.title}: {self.done:,}"
        if self.total:
            line += f"/{self.total:,}"
        line += f" {self.unit}, {elapsed:.0f} s"
        if rate and self.total > self.done:
            line += f", {(self.total - self.done) / rate:.0f} s left"
        if self.note:
            line += f", {self.note}"
        print(line, file=sys.stdout, flush=True)
