"""How the processes of a run find each other, and how they end.

`run` starts the other processes on this machine, which talk over the loopback interface alone, or
joins those that `torchrun` has started, on one machine or several. A process that is gone, stopped
or out of reach ends the run on all of them within seconds: they send each other a sign of life.
"""

import multiprocessing
import os
import shutil
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, redirect_stdout
from datetime import timedelta
from functools import partial
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import psutil
import torch

from lmlab.core import errors
from lmlab.core.errors import UserError
from lmlab.model import processes
from lmlab.model.processes import Lost, Share

SECONDS_BETWEEN_SIGNS = 1.0
SECONDS_WITHOUT_SIGN = 10.0
"""After which a process counts as gone."""
SECONDS_TO_MEET = 60.0
"""Within which all processes have to be there."""
SECONDS_TO_END = 3.0
"""For a process to end by itself after an error of another one."""
PATIENCE = timedelta(days=30)
"""For an exchange: how long a process computes says nothing; that it lives is seen elsewhere."""
RESUME = "run the same command again to go on from the last checkpoint"
LOOPBACK = "lo0" if sys.platform == "darwin" else "lo"

Found = TypeVar("Found")
Helpers = Sequence[tuple[BaseProcess, Connection]]
"""The processes that this one has started, and what they may say before they end."""


class Meeting(NamedTuple):
    """Where the processes of a run find each other."""

    share: Share
    store: str
    """A file on this machine; empty where `torchrun` has said where, in the environment."""
    backend: str


def run(
    key: str, count: int, backend: str, function: Callable[..., Found], *arguments: Any
) -> Found:
    """`function(*arguments)` on `count` processes at once; what it returns on this one.

    The others are started here, so function and arguments are sent to them; or they are those that
    `torchrun` has started, if it has started this one. `key` is the key of params.yaml that says
    how many. Raises UserError where they are not as many, and, once one of them has failed or is
    gone, what became of it.
    """
    started = _by_torchrun()
    if started and started.total != count:
        raise UserError(
            f"params.yaml: {key} is {count}, and torchrun has started {started.total};"
            " let both be the same number"
        )
    if count == 1:
        return function(*arguments)
    if multiprocessing.current_process().daemon:
        raise UserError(
            f"params.yaml: {key} is {count}, and a process of a pool may start no others; set it"
            " to 1"
        )
    if started:
        return _beside_others(Meeting(started, "", backend), function, arguments)
    return _with_helpers(count, backend, function, arguments)


def _by_torchrun() -> Share | None:
    """The share of a process that `torchrun` has started."""
    names = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
    if not all(os.environ.get(name) for name in names):
        return None
    return Share(int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"]))


def _beside_others(
    meeting: Meeting, function: Callable[..., Found], arguments: Sequence[Any]
) -> Found:
    """As one of the processes that `torchrun` has started."""
    with ExitStack() as stack:
        if meeting.share.rank:
            nowhere = stack.enter_context(open(os.devnull, "w", encoding="utf-8"))
            stack.enter_context(redirect_stdout(nowhere))
        try:
            with _joined(meeting, partial(_end_now, meeting.share)):
                return function(*arguments)
        except Lost:
            raise UserError(_lost(meeting.share)) from None


def _end_now(mine: Share) -> None:
    """End this process from a thread that has found another one gone."""
    sys.stdout.flush()
    print(f"error: {_lost(mine)}", file=sys.stderr, flush=True)
    os._exit(2)


def _lost(mine: Share) -> str:
    others = (
        "the other process" if mine.total == 2 else f"one of the other {mine.total - 1} processes"
    )
    return f"{others} of this run is gone or cannot be reached; {RESUME}"


def _with_helpers(
    count: int, backend: str, function: Callable[..., Found], arguments: Sequence[Any]
) -> Found:
    """As the first of several processes, the others of which are started here."""
    context = multiprocessing.get_context("spawn")
    with tempfile.TemporaryDirectory(prefix="lmlab-") as folder:
        store = str(Path(folder) / "store")
        helpers: list[tuple[BaseProcess, Connection]] = []
        # they inherit that Ctrl-C is ignored: this process answers it
        answer = _ignore_interrupts()
        try:
            for rank in range(1, count):
                here, there = context.Pipe(duplex=False)
                meeting = Meeting(Share(rank, count), store, backend)
                target = (meeting, there, function, arguments)
                helper: BaseProcess = context.Process(
                    target=_help, args=target, name=f"process {rank}"
                )
                helper.start()
                there.close()
                helpers.append((helper, here))
            answer()

            def end_now() -> None:
                line = _what_became(helpers) or _lost(Share(0, count))
                _kill(helpers)
                shutil.rmtree(folder, ignore_errors=True)
                sys.stdout.flush()
                print(f"error: {line}", file=sys.stderr, flush=True)
                os._exit(2)

            try:
                _await_start(helpers)
                with _joined(Meeting(Share(0, count), store, backend), end_now):
                    found = function(*arguments)
            except Lost:
                raise UserError(_what_became(helpers) or _lost(Share(0, count))) from None
            for helper, _ in helpers:
                helper.join(SECONDS_TO_END)
            return found
        finally:
            answer()
            _kill(helpers)


def _ignore_interrupts() -> Callable[[], None]:
    """Ignore Ctrl-C, except in a thread, where that is impossible, until the result is called."""
    if threading.current_thread() is not threading.main_thread():
        return lambda: None
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)

    def answer() -> None:
        signal.signal(signal.SIGINT, before)

    return answer


def _await_start(helpers: Helpers) -> None:
    """Wait until every helper has been loaded. Raises Lost where one has ended before."""
    for _, here in helpers:
        try:
            here.recv()
        except EOFError:
            raise Lost("it ended while it was loaded") from None


def _kill(helpers: Helpers) -> None:
    for helper, _ in helpers:
        helper.kill()
    for helper, _ in helpers:
        helper.join()


def _what_became(helpers: Helpers) -> str:
    """What a helper has said before it ended, or how it ended; empty where all live."""
    until = time.monotonic() + SECONDS_TO_END
    count = len(helpers) + 1
    while time.monotonic() < until:
        for rank, (helper, here) in enumerate(helpers, start=1):
            if here.poll():
                try:
                    return f"process {rank} of {count}: {here.recv()}"
                except EOFError:
                    pass
            if helper.exitcode is not None and helper.exitcode < 0:
                name = signal.Signals(-helper.exitcode).name
                return f"process {rank} of {count} was ended by {name}; {RESUME}"
            if helper.exitcode:
                return f"process {rank} of {count} ended; {RESUME}"
            if _is_stopped(helper):
                return f"process {rank} of {count} was stopped and does not answer; {RESUME}"
        time.sleep(0.05)
    return ""


def _is_stopped(helper: BaseProcess) -> bool:
    try:
        return bool(psutil.Process(helper.pid).status() == psutil.STATUS_STOPPED)
    except psutil.NoSuchProcess:
        return False


def _help(
    meeting: Meeting, there: Connection, function: Callable[..., Any], arguments: Sequence[Any]
) -> None:
    """The main function of a process that was started to help another one."""
    end = partial(_end_with_parent, Path(meeting.store).parent)
    threading.Thread(target=end, daemon=True, name="parent").start()
    try:
        there.send("loaded")
    except BrokenPipeError:
        end()
    with open(os.devnull, "w", encoding="utf-8") as nowhere, redirect_stdout(nowhere):
        try:
            with _joined(meeting, lambda: os._exit(2)):
                function(*arguments)
        except Lost:
            os._exit(2)  # the first process says it
        except BaseException as error:
            explanation = errors.explain(error)
            if explanation is None:
                raise
            line, code = explanation
            there.send(line.removeprefix("error: "))
            there.close()
            os._exit(code)


def _end_with_parent(folder: Path) -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    shutil.rmtree(folder, ignore_errors=True)
    os._exit(2)


@contextmanager
def _joined(meeting: Meeting, end: Callable[[], None]) -> Iterator[None]:
    """Inside, this process is one of a group. All leave it together.

    `end` ends this process; it is called from a thread, where another process is gone and this one
    has not noticed by itself, as it waits for it.
    """
    import torch.distributed as dist
    from torch.distributed.rendezvous import rendezvous

    rank, count = meeting.share
    try:
        if meeting.store:
            os.environ["GLOO_SOCKET_IFNAME"] = LOOPBACK
            store = dist.FileStore(meeting.store, count)  # type: ignore[attr-defined]
        else:
            store, *_ = next(rendezvous("env://", timeout=timedelta(seconds=SECONDS_TO_MEET)))
        store.set(f"here {rank}", "")
        store.wait([f"here {other}" for other in range(count)], timedelta(seconds=SECONDS_TO_MEET))
        dist.init_process_group(
            meeting.backend, store=store, rank=rank, world_size=count, timeout=PATIENCE
        )
        signs = dist.new_group(backend="gloo", timeout=timedelta(seconds=SECONDS_WITHOUT_SIGN))
        dist.barrier(group=signs)
    except (RuntimeError, ValueError) as error:
        if dist.is_initialized():
            dist.destroy_process_group()
        if meeting.store:
            raise Lost(str(error)) from error
        reason = " ".join(str(error).split())[:160]
        raise UserError(
            f"the {count} processes that torchrun has started do not meet at"
            f" {os.environ['MASTER_ADDR']}:{os.environ['MASTER_PORT']} ({reason}); see that all are"
            " started, that they reach each other, and that no other run uses the port"
        ) from None
    if meeting.store:  # which nobody needs any more
        shutil.rmtree(Path(meeting.store).parent, ignore_errors=True)
    life = _SignsOfLife(signs, end)
    life.start()
    try:
        with processes.together(meeting.share):
            yield
        life.leave_together()
    except BaseException:
        life.leave()
        raise
    finally:
        dist.destroy_process_group()


class _SignsOfLife(threading.Thread):
    """Exchanges a sign with all other processes every second, until all want to leave."""

    def __init__(self, group: Any, end: Callable[[], None]) -> None:
        super().__init__(daemon=True, name="signs of life")
        self.group, self.end = group, end
        self._is_done = False
        self._has_failed = False
        self._answered = threading.Event()

    def run(self) -> None:
        import torch.distributed as dist

        try:
            while True:
                wants_to_stay = torch.tensor([0 if self._is_done else 1])
                dist.all_reduce(wants_to_stay, group=self.group)
                if not int(wants_to_stay):
                    return
                self._answered.wait(0.0 if self._is_done else SECONDS_BETWEEN_SIGNS)
                if self._answered.is_set() and not self._is_done:
                    return
        except (RuntimeError, ValueError):  # ValueError where the group is being left
            self._has_failed = True
            # whoever waits for the lost process finds out by itself, unless it was only stopped
            if not self._answered.wait(SECONDS_TO_END):
                self.end()

    def leave_together(self) -> None:
        """Wait until every process wants to leave. Raises Lost where one does not come."""
        self._is_done = True
        self._answered.set()
        self.join()
        if self._has_failed:
            raise Lost("a process did not come to the end")

    def leave(self) -> None:
        """Leave alone, after an error."""
        self._answered.set()
        self.join()
