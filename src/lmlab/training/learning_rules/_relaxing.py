"""The model taken apart at its blocks: what the learning rules share that relax activations or
teach each block alone.

The units are the embedding and the blocks. Across units nothing flows but what a rule puts there;
within a unit, and from the loss down to the last block's output, autograd is exact.
"""

import torch
from torch import Tensor

from lmlab.model.models.base import LanguageModel


def value_of(output: Tensor) -> Tensor:
    """What a unit has put out as a node of its own, cut off from what made it: a leaf, in float32
    at least.
    """
    return output.detach().to(torch.promote_types(output.dtype, torch.float32)).requires_grad_()


def taken_apart(model: LanguageModel, tokens_BT: Tensor) -> tuple[list[Tensor], list[Tensor]]:
    """The outputs x_BTS of the embedding and of every block, and the same as leaves.

    Each output hangs on the leaf below it and on its own unit's parameters, on nothing else.
    """
    outputs = [model.embed(tokens_BT)]
    values = [value_of(outputs[0])]
    for block in model.blocks:
        outputs.append(block(values[-1]))
        values.append(value_of(outputs[-1]))
    return outputs, values


def teach(outputs: list[Tensor], signals: list[Tensor]) -> None:
    """Add to the gradients of every unit's parameters those that its signal, as the gradient at its
    output, gives them.
    """
    pairs = [
        (output, signal)
        for output, signal in zip(outputs, signals, strict=True)
        if output.requires_grad
    ]
    if pairs:
        torch.autograd.backward([output for output, _ in pairs], [signal for _, signal in pairs])
