"""One run by several processes: what each of them computes, and how they put it together.

Every process takes the same steps with the same weights, and what is costly they share: the
micro-batches of a step, the members of a rule's population, the windows of a validation. Numbers
are added in a fixed order, never in the order in which they arrive. So the result has the same
bytes with one process or several, as long as they compute on the same kind of processor.

Where there is one process everything here is a plain loop. `meeting` starts and ends several.
"""

import socket
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, TypeVar

import torch
from torch import Tensor, nn

from lmlab.core.errors import UserError

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
    """To others, so far: gradients and numbers of a step, not what a validation finds, nor what
    keeps the processes together.
    """


_group: Group | None = None
"""Global to the process: torch has one group of processes, too."""
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
def together(share: Share) -> Iterator[None]:
    """Inside, this is one of several processes, which can reach each other."""
    global _group
    _group = Group(share)
    try:
        yield
    finally:
        _group = None


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

    Where the numbers themselves go wrong (ArithmeticError), that is raised on all of them, when its
    item's turn comes. Any other exception ends the process that meets it, and with it the run.
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
