"""Progress of long work: a live bar in a terminal, a plain line every few seconds anywhere else."""

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
    """`with ProgressBar("train", total=2000, unit="steps") as bar: bar.advance(1, "loss 2.31")`."""

    def __init__(self, title: str, total: int, unit: str, done: int = 0) -> None:
        self.title, self.total, self.unit, self.done, self.note = title, total, unit, done, ""
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
        self._started = self._printed = time.monotonic()
        self._start = self._told = done

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
        elif kind is None and self.done != self._told:
            self._print()

    def advance(self, amount: int, note: str | None = None) -> None:
        """Count `amount` units as done; `note` is shown behind the bar until the next one."""
        self.done += amount
        self.note = self.note if note is None else note
        if self._live:
            self._live.update(self._task, completed=self.done, note=self.note)
        elif time.monotonic() - self._printed >= SECONDS_BETWEEN_LINES:
            self._print()

    def say(self, text: str) -> None:
        """Print text above the bar."""
        if self._live:
            self._live.console.print(text, markup=False, highlight=False)
        else:
            print(text, flush=True)

    def _print(self) -> None:
        self._printed, self._told = time.monotonic(), self.done
        elapsed = self._printed - self._started
        rate = (self.done - self._start) / elapsed if elapsed > 0 else 0.0
        left = (
            f", {(self.total - self.done) / rate:.0f} s left"
            if rate and self.total > self.done
            else ""
        )
        of = f"/{self.total:,}" if self.total else ""
        note = f", {self.note}" if self.note else ""
        print(
            f"{self.title}: {self.done:,}{of} {self.unit}, {elapsed:.0f} s{left}{note}",
            file=sys.stdout,
            flush=True,
        )
