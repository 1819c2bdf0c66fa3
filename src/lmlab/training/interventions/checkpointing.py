"""Activation checkpointing (Chen et al. 2016): blocks recompute their forward pass to save memory.

    memory = inputs of the lowest blocks + activations of one of them + activations of the others

The lowest `blocks` blocks keep only their input, and compute their forward pass again when the
backward pass reaches them. The result is the same bit for bit: noise is drawn by site, so dropout
drops the same units again. More blocks than the model has means all. 0 turns it off. Cost: one more
forward pass of those blocks.
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
from lmlab.training.learning_rules.base import LearningRule, MicroBatches


class Options(Params):
    """Options of the intervention."""

    blocks: int = Field(ge=0)


class Checkpointing(Intervention):
    """It has no state."""

    acts_in_backward = True
    neutral = {"blocks": 0}

    def __init__(self, options: Options, model: LanguageModel, rule: LearningRule) -> None:
        super().__init__(rule)
        self.blocks = options.blocks
        if self.blocks:
            self.require_backward()

    def accumulate_gradients(self, model: LanguageModel, micro_batches: MicroBatches) -> Tensor:
        with _checkpointed(model, self.blocks):
            return self.rule.accumulate_gradients(model, micro_batches)


@contextmanager
def _checkpointed(model: LanguageModel, blocks: int) -> Iterator[None]:
    """Inside, the lowest `blocks` blocks have a checkpointed `forward`."""
    lowest = list(model.blocks)[:blocks]
    earlier = [vars(block).get("forward") for block in lowest]
    for block in lowest:
        block.forward = partial(
            checkpoint, block.forward, use_reentrant=False, context_fn=_contexts
        )
    try:
        yield
    finally:
        for block, forward in zip(lowest, earlier, strict=True):
            if forward is None:
                del block.forward  # uncovers the method of the block's class
            else:
                block.forward = forward  # of another checkpointing around this one


def _contexts() -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
    """Contexts for a block's forward pass and for its recomputation.

    Autograd starts the recomputation outside the torch function modes that a learning rule or
    another intervention had entered around the forward pass, so they are entered again.
    """
    modes = _get_current_function_mode_stack()  # type: ignore[no-untyped-call]

    @contextmanager
    def recomputation() -> Iterator[None]:
        with ExitStack() as stack:
            for mode in modes:
                stack.enter_context(mode)
            yield

    return nullcontext(), recomputation()
