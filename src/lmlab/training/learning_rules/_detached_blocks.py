"""The model cut into units, between which no gradient flows by itself.

Unit 0 is the embedding and unit k the k-th block; the head belongs to none. Local rules train each
unit alone or carry their own signal from one to the next. Autograd is exact within a unit, and from
the loss down to the last block's output.
"""

from collections.abc import Iterator

import torch
from torch import Tensor

from lmlab.model.models.base import LanguageModel


def unit_outputs(model: LanguageModel, tokens_BT: Tensor) -> Iterator[Tensor]:
    """The outputs s_BTS of the embedding and then of each block, computed one by one."""
    s_BTS = model.embed(tokens_BT)
    yield s_BTS
    for block in model.blocks:
        s_BTS = block(s_BTS)
        yield s_BTS


def last_block_output(model: LanguageModel, tokens_BT: Tensor) -> Tensor:
    """s_BTS as the head reads it; without blocks, the embedding's output."""
    for output in unit_outputs(model, tokens_BT):
        s_BTS = output
    return s_BTS


def leaf_copy(output: Tensor, full_precision: bool = True) -> Tensor:
    """A unit's output as a leaf of autograd's graph, cut off from what computed it.

    In full precision it has at least float32, so that small corrections to it are not rounded away.
    """
    leaf = output.detach()
    if full_precision:
        leaf = leaf.to(torch.promote_types(leaf.dtype, torch.float32))
    return leaf.requires_grad_()


class DetachedBlocks:
    """One forward pass in which each unit reads a leaf copy of the output of the unit below it."""

    def __init__(
        self, model: LanguageModel, tokens_BT: Tensor, full_precision: bool = False
    ) -> None:
        self.outputs = [model.embed(tokens_BT)]
        """s_BTS of every unit. Each depends on the leaf below and on its unit's parameters alone.
        """
        self.leaves = [leaf_copy(self.outputs[0], full_precision)]
        """A copy of every output, read by the unit above (or the head), where its gradient arrives.
        """
        for block in model.blocks:
            output = block(self.leaves[-1])
            self.outputs.append(output)
            self.leaves.append(leaf_copy(output, full_precision))
        self.logits_BTV = model.head(self.leaves[-1])

    def take_leaf_grad(self, unit: int) -> Tensor | None:
        """Remove and return the gradient that has arrived at a unit's leaf, if any."""
        leaf = self.leaves[unit]
        gradient = leaf.grad
        leaf.grad = None
        return gradient

    def backward(self, unit: int, grad_output: Tensor | None) -> Tensor | None:
        """Backprop within one unit; returns the gradient at its input, None for the embedding.

        Adds to the gradients of the unit's parameters. It may be called again for the same unit.
        """
        output = self.outputs[unit]
        if grad_output is not None and output.requires_grad:
            torch.autograd.backward(output, grad_output.to(output.dtype), retain_graph=True)
        return self.take_leaf_grad(unit - 1) if unit else None

    def backward_all(self, grad_outputs: list[Tensor]) -> None:
        """Backprop within every unit from a gradient at its output, once, and free the graph."""
        outputs = []
        gradients = []
        for output, gradient in zip(self.outputs, grad_outputs, strict=True):
            if output.requires_grad:
                outputs.append(output)
                gradients.append(gradient)
        if outputs:
            torch.autograd.backward(outputs, gradients)
