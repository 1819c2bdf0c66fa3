"""Calls of a whole model through torch's compiler, which fuses chains of small operations."""

from collections.abc import Iterator
from contextlib import contextmanager
from types import TracebackType

import torch
from torch import Tensor, nn

from lmlab.core.errors import UserError
from lmlab.model import noise


def _register_masks() -> None:
    """Register `noise.dropout_mask` as one operation that compiled graphs can call.

    It is marked as nondeterministic, because its result depends on the current noise key.
    """
    if hasattr(torch.ops.lmlab, "mask"):
        return

    @torch.library.custom_op(
        "lmlab::mask", mutates_args=(), tags=(torch.Tag.nondeterministic_seeded,)
    )
    def mask(like: Tensor, keep_probability: float, site: str) -> Tensor:
        return noise.dropout_mask(like, keep_probability, site)

    mask.register_fake(lambda like, keep_probability, site: torch.empty_like(like))


class Compiled:
    """Inside this context calls of the model are compiled, backward pass included.

    Outside, the model runs as written. Compilation happens in the first call inside and takes up to
    some minutes; torch caches the result on disk for later processes.
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
        del self.model.forward  # which uncovers the class's own


@contextmanager
def compiler_errors() -> Iterator[None]:
    """Inside, a failure of torch's compiler is raised as a UserError of one line.

    The error of a full disk is passed on unchanged: it is not the compiler's fault.
    """
    try:
        yield
    except RuntimeError as error:
        modules = [base.__module__ for base in type(error).__mro__]
        by_compiler = any(name.startswith(("torch._dynamo", "torch._inductor")) for name in modules)
        # the C++ compiler is another process, of which only its output tells that the disk is full
        if not by_compiler or "No space left on device" in str(error):
            raise
        raise UserError(
            f"train.compile: torch could not compile the model ({_reason(error)}); it needs a C++"
            " compiler, such as g++, and Python's header files; install them or set train.compile"
            " to false"
        ) from None


def _reason(error: BaseException) -> str:
    """The C++ compiler's first error message, or else the first line of the innermost error."""
    inner = getattr(error, "inner_exception", None) or error
    stripped = [line.strip() for line in str(inner).splitlines()]
    lines = [line for line in stripped if line]
    messages = [line for line in lines if "error: " in line]
    candidates = [*messages, *lines, type(inner).__name__]
    return candidates[0][:200]
