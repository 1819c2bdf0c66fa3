"""Activation checkpointing (Chen et al. 2016): blocks compute their forward pass again on the way
back, to keep less.
"""

from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from functools import partial

from pydantic import Field
from torch import Tensor
from torch.overrides import _get_current_function_mode_stack
from torch.utils.checkpoint import checkpoint

from lmlab.core.params import Params
from lmlab.model.models.base import LanguageModel
from lmlab.training.interventions.base import Intervention
from lmlab.training.learning_rules.base import LearningRule, Pieces


class Options(Params):
    """Options of the intervention."""

    blocks: int = Field(ge=0)


class Checkpointing(Intervention):
    """The lowest blocks, so many of them, keep only their input until the backward pass comes; bit
    for bit the same result.

    Noise is drawn by its site, so that dropout drops the same the second time. More blocks than
    there are means all.
    """

    on_the_way = True
    neutral = {"blocks": 0}

    def __init__(self, options: Options, model: LanguageModel, rule: LearningRule) -> None:
        super().__init__(rule)
        self.blocks = options.blocks
        if self.blocks:
            self.needs_backward()

    def accumulate_gradients(self, model: LanguageModel, pieces: Pieces) -> Tensor:
        with _forgetful(model, self.blocks):
            return self.rule.accumulate_gradients(model, pieces)


@contextmanager
def _forgetful(model: LanguageModel, blocks: int) -> Iterator[None]:
    lowest = list(model.blocks)[:blocks]
    before = [vars(block).get("forward") for block in lowest]
    for block in lowest:
        block.forward = partial(
            checkpoint, block.forward, use_reentrant=False, context_fn=_both_times
        )
    try:
        yield
    finally:
        for block, own in zip(lowest, before, strict=True):
            if own is None:
                del block.forward  # what its class says is seen again
            else:
                block.forward = own  # another one stands around this


def _both_times() -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
    """What surrounds a block's first and its second forward pass.

    Autograd starts the second outside the modes that a learning rule or another intervention had
    put around the first.
    """
    modes = _get_current_function_mode_stack()  # type: ignore[no-untyped-call]

    @contextmanager
    def again() -> Iterator[None]:
        with ExitStack() as stack:
            for mode in modes:
                stack.enter_context(mode)
            yield

    return nullcontext(), again()
