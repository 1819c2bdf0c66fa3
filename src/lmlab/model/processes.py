"""One run by several processes: what each of them computes, and how they put it together.

Every process takes the same steps with the same weights, and what is costly they share: the
micro-batches of a step, the members of a rule's population, the windows of a validation. Numbers
are added in a fixed order, never in the order in which they arrive. So the result has the same
bytes with one process or several, as long as they compute on the same kind of processor.

`run` starts the other processes on this machine, which talk over the loopback interface alone, or
joins those that `torchrun` has started, on one machine or several. A process that is gone, stopped
or out of reach ends the run on all of them within seconds: they send each other a sign of life.
Without `run`, and with a `count` of 1, everything here is a plain loop.
"""

import os
import shutil
import signal
import socket
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, redirect_stdout
from dataclasses import dataclass
from datetime import timedelta
from functools import partial
from multiprocessing import get_context, parent_process
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any, Literal, NamedTuple, TypeVar

import psutil
import torch
from torch import Tensor, nn

from lmlab.core import errors
from lmlab.core.errors import UserError

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

Item = TypeVar("Item")
Found = TypeVar("Found")
Shared = Literal["batch", "population"]


class Share(NamedTuple):
    """Which part of what several processes share is this one's: every `total`-th from `rank` on."""

    rank: int
    total: int


ALONE = Share(0, 1)


class Lost(Exception):  # noqa: N818 (the field's word)
    """Another process did not answer, or answered something that makes no sense."""


@dataclass
class Group:
    """The processes of a run, seen from one of them."""

    share: Share
    sent_bytes: int = 0
    """To others, so far: gradients and numbers, without what keeps the processes together."""


_group: Group | None = None
_shared: Shared | None = None
_is_alone = False


def share() -> Share:
    """This process's share of what every process of the run takes part in; ALONE without others."""
    return _group.share if _group and not _is_alone else ALONE


def share_of(what: Shared) -> Share:
    """This process's share of a batch or a population, where `sharing` says that it is shared."""
    return share() if _shared == what else ALONE


def share_it(what: Shared) -> bool:
    """Whether there are several processes that share a batch or a population."""
    return share_of(what).total > 1


def is_first() -> bool:
    """Whether this is the process that writes and prints."""
    return not _group or _group.share.rank == 0


def sent_bytes() -> int:
    """How much this process has sent to others until now."""
    return _group.sent_bytes if _group else 0


@contextmanager
def sharing(what: Shared | None) -> Iterator[None]:
    """Inside, this is shared among the run's processes, and nothing else."""
    global _shared
    outer, _shared = _shared, what
    try:
        yield
    finally:
        _shared = outer


@contextmanager
def alone() -> Iterator[None]:
    """Inside is what this process computes for all: nothing in it is shared out once more."""
    global _is_alone
    outer, _is_alone = _is_alone, True
    try:
        yield
    finally:
        _is_alone = outer


# ---------------------------------------------------------------- computing together


def in_turn(compute: Callable[[int], Tensor], count: int) -> Iterator[Tensor]:
    """`compute(number)` for each of `count` members of a population, in order, on every process.

    Each is computed by one process; the tensors have the same shape. What is exchanged is these
    tensors alone.
    """
    mine = share_of("population")
    for first in range(0, count, mine.total):
        # beyond the last member there is nothing to do: repeat it
        own = compute(min(first + mine.rank, count - 1))
        if mine.total == 1:
            yield own
            continue
        yield from _gathered(own)[: count - first]


def shared_out(compute: Callable[[Item], Found], items: Sequence[Item]) -> Iterator[Found]:
    """`compute(item)` for each item, in order, on every process; each is computed by one process.

    An exception is raised on all of them, where its item's turn comes.
    """
    rank, count = share()
    if count == 1:
        yield from map(compute, items)
        return
    for first in range(0, len(items), count):
        found: Any = None
        if first + rank < len(items):
            try:
                with alone():
                    found = compute(items[first + rank])
            except ArithmeticError as error:  # of the numbers themselves, such as NaN
                found = error
        for one in every(found)[: len(items) - first]:
            if isinstance(one, ArithmeticError):
                raise one
            yield one


def every(value: Any) -> list[Any]:
    """A value of each process, in their order, on all of them."""
    count = share().total
    if count == 1:
        return [value]
    import torch.distributed as dist

    values: list[Any] = [None] * count
    with _exchange():
        dist.all_gather_object(values, value)
    return values


def from_first(value: Any) -> Any:
    """The first process's value, on all of them."""
    if share().total == 1:
        return value
    import torch.distributed as dist

    values = [value]
    with _exchange():
        dist.broadcast_object_list(values, src=0)
    return values[0]


def check_same(facts: Mapping[str, str], advice: str) -> None:
    """Raise UserError, on every process, where one of them has other facts than the first."""
    of_all = every((socket.gethostname(), dict(facts)))
    _, expected = of_all[0]
    for rank, (host, found) in enumerate(of_all):
        names = sorted({*expected, *found})
        other = [name for name in names if expected.get(name) != found.get(name)]
        if other:
            more = f" and {len(other) - 3} more" if len(other) > 3 else ""
            raise UserError(
                f"process {rank} of {len(of_all)}, on {host}, has not what process 0 has:"
                f" {', '.join(other[:3])}{more}; {advice}"
            )


class OrderedSum:
    """The sum of the gradients of a batch's pieces, in the pieces' order, whoever found them.

    `add` takes what is in every `parameter.grad` as this process's next piece; `assign_mean` puts
    the mean of all pieces there. Each process adds up one part of the numbers: it sends the others
    their parts of each of its pieces, and at the end what it has added up. A parameter without a
    gradient is left out of the sum, not counted as 0, and gets none where no piece had one.
    """

    def __init__(self, parameters: Sequence[nn.Parameter]) -> None:
        self.parameters = list(parameters)
        if len({parameter.dtype for parameter in parameters}) > 1:
            raise TypeError("parameters of several dtypes")
        self.share = share()
        self.pieces = 0
        self._has_gradient = torch.zeros(len(self.parameters), dtype=torch.uint8)
        self._own_part: Tensor | None = None

    def add(self) -> None:
        """Take this process's next piece."""
        self.pieces += self.share.total
        gradients = [parameter.grad for parameter in self.parameters]
        for parameter in self.parameters:
            parameter.grad = None
        import torch.distributed as dist

        flat = self._flat(gradients)
        arrived = torch.empty_like(flat)
        with _exchange(flat.nbytes - flat.nbytes // self.share.total):
            dist.all_to_all_single(arrived, flat)
        for part in arrived.view(self.share.total, -1):
            if self._own_part is None:
                self._own_part = part.clone()
            else:
                self._own_part += part

    def assign_mean(self) -> None:
        """Let every `parameter.grad` be the mean over all pieces of all processes."""
        for parameter, mean in zip(self.parameters, self._all_parts(), strict=True):
            parameter.grad = mean

    def _flat(self, gradients: Sequence[Tensor | None]) -> Tensor:
        """The gradients as one vector, as long as a multiple of the number of processes.

        Where there is none, the vector has -0.0, the only number that changes no other by being
        added, not even the sign of a zero.
        """
        sizes = [parameter.numel() for parameter in self.parameters]
        length = -(-sum(sizes) // self.share.total) * self.share.total
        flat = self.parameters[0].new_full((length,), -0.0)
        for number, (piece, gradient) in enumerate(
            zip(torch.split(flat[: sum(sizes)], sizes), gradients, strict=True)
        ):
            if gradient is not None:
                piece.copy_(gradient.reshape(-1))
                self._has_gradient[number] = 1
        return flat

    def _all_parts(self) -> list[Tensor | None]:
        """The means, put together from the parts that each process has added up."""
        assert self._own_part is not None
        whole = _joined_up(self._own_part / self.pieces)
        has_gradient = torch.stack(_gathered(self._has_gradient)).amax(0)
        sizes = [parameter.numel() for parameter in self.parameters]
        means = torch.split(whole[: sum(sizes)], sizes)
        return [
            one.view_as(parameter) if has else None
            for parameter, one, has in zip(
                self.parameters, means, has_gradient.tolist(), strict=True
            )
        ]


def in_order(own: Tensor) -> Tensor:
    """Numbers of this process's pieces of a batch, shape (pieces,), as those of all, in order."""
    return torch.stack(_gathered(own)).T.flatten()


def _gathered(own: Tensor) -> list[Tensor]:
    """A tensor of each process, in their order."""
    return [one.view_as(own) for one in _joined_up(own.reshape(-1)).chunk(share().total)]


def _joined_up(own_N: Tensor) -> Tensor:
    """The vectors of all processes, which are equally long, one after the other."""
    import torch.distributed as dist

    count = share().total
    whole = own_N.new_empty(count * len(own_N))
    with _exchange(own_N.nbytes * (count - 1)):
        dist.all_gather(list(whole.chunk(count)), own_N.contiguous())
    return whole


@contextmanager
def _exchange(sent: int = 0) -> Iterator[None]:
    """Around every exchange: count what this process sends, and raise Lost where nobody answers."""
    try:
        yield
    except RuntimeError as error:  # torch's only word for whatever goes wrong on the way
        raise Lost(str(error)) from error
    if _group:
        _group.sent_bytes += sent


# ---------------------------------------------------------------- starting and ending together


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
            with _joined(meeting, _end_now):
                return function(*arguments)
        except Lost:
            raise UserError(_lost(meeting.share)) from None


def _end_now() -> None:
    """End this process from a thread that has found another one gone."""
    rank, count = share()
    sys.stdout.flush()
    print(f"error: {_lost(Share(rank, count))}", file=sys.stderr, flush=True)
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
    context = get_context("spawn")
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


def _await_start(helpers: Sequence[tuple[BaseProcess, Connection]]) -> None:
    """Wait until every helper has been loaded. Raises Lost where one has ended before."""
    for _, here in helpers:
        try:
            here.recv()
        except EOFError:
            raise Lost("it ended while it was loaded") from None


def _kill(helpers: Sequence[tuple[BaseProcess, Connection]]) -> None:
    for helper, _ in helpers:
        helper.kill()
    for helper, _ in helpers:
        helper.join()


def _what_became(helpers: Sequence[tuple[BaseProcess, Connection]]) -> str:
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
            if psutil.Process(helper.pid).status() == psutil.STATUS_STOPPED:
                return f"process {rank} of {count} was stopped and does not answer; {RESUME}"
        time.sleep(0.05)
    return ""


def _help(
    meeting: Meeting, there: Connection, function: Callable[..., Any], arguments: Sequence[Any]
) -> None:
    """The main function of a process that was started to help another one."""
    end = partial(_end_with_parent, Path(meeting.store).parent)
    threading.Thread(target=end, daemon=True, name="parent").start()
    there.send("loaded")
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
    parent = parent_process()
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
    global _group
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
    _group = Group(meeting.share)
    life = _SignsOfLife(signs, end)
    life.start()
    try:
        yield
        life.leave_together()
    except BaseException:
        life.leave()
        raise
    finally:
        _group = None
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
