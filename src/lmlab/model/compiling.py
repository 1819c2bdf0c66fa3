"""Calls of a whole model by way of torch's compiler, which makes one loop of many small operations
in a row.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from types import TracebackType

import torch
from torch import Tensor, nn

from lmlab.core.errors import UserError
from lmlab.model import noise


def _register_masks() -> None:
    """Let compiled graphs call `noise.kept` as one operation, whose result depends on the key of
    the moment.
    """
    if hasattr(torch.ops.lmlab, "mask"):
        return

    @torch.library.custom_op(
        "lmlab::mask", mutates_args=(), tags=(torch.Tag.nondeterministic_seeded,)
    )
    def mask(like: Tensor, share: float, site: str) -> Tensor:
        return noise.kept(like, share, site)

    mask.register_fake(lambda like, share, site: torch.empty_like(like))


class Compiled:
    """Inside, what the model computes when called is compiled, backward pass included; outside it
    runs as written.

    Nothing happens before the first call inside, which takes up to minutes; torch keeps the result
    for later processes.
    """

    def __init__(self, model: nn.Module) -> None:
        _register_masks()
        self.model = model
        self.forward = torch.compile(model.forward, dynamic=False)

    def __enter__(self) -> None:
        self.model.forward = self.forward

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        del self.model.forward  # and the class has its own again


@contextmanager
def failures_told() -> Iterator[None]:
    """Inside, what the compiler cannot do is raised as a UserError in one line."""
    try:
        yield
    except RuntimeError as error:
        kind = type(error)
        if not any(
            base.__module__.startswith(("torch._dynamo", "torch._inductor"))
            for base in kind.__mro__
        ):
            raise
        if "No space left on device" in str(error):
            raise
        raise UserError(
            f"train.compile: torch could not compile the model ({_reason(error)}); it needs a C++"
            " compiler, such as g++, and"
            " Python's header files; install them or set train.compile to false"
        ) from None


def _reason(error: BaseException) -> str:
    """The C++ compiler's first complaint, or else the first line of the innermost error."""
    inner = getattr(error, "inner_exception", None) or error
    lines = [line.strip() for line in str(inner).splitlines() if line.strip()]
    complaints = [line for line in lines if "error: " in line]
    return [*complaints, *lines, type(inner).__name__][0][:200]
