"""A loss at every block's output, and backprop from each through a few blocks."""

import torch
from torch import Tensor, nn

from lmlab.model.models.base import LanguageModel, next_token_loss
from lmlab.training.learning_rules._detached_blocks import DetachedBlocks
from lmlab.training.learning_rules._shapes import stream_widths


class LocalHeads(nn.Module):
    """An output head for every block but the last: RMS normalisation without gains, then W_VS.

    The last block has the model's own head.
    """

    def __init__(self, model: LanguageModel) -> None:
        super().__init__()
        widths = stream_widths(model)[1:-1]
        self.weights = nn.ParameterList(
            torch.empty(model.vocabulary_size, width).normal_(std=0.02) for width in widths
        )

    def loss(self, number: int, s_BTS: Tensor, targets_BT: Tensor) -> Tensor:
        """Mean cross-entropy, in nats per token, of predicting from the output of block `number`.

        Blocks are counted from 0.
        """
        normalised_BTS = nn.functional.rms_norm(s_BTS, s_BTS.shape[-1:])
        logits_BTV = nn.functional.linear(normalised_BTS, self.weights[number])
        return next_token_loss(logits_BTV, targets_BT)


def backprop_local_losses(blocks: DetachedBlocks, losses: list[Tensor], span: int) -> None:
    """Backprop each block's loss through that block and the span - 1 blocks below it.

    `losses` has one loss for each block, computed from the leaf copy of its output. The embedding
    counts as part of the first block. Heads that a loss is computed with get their gradients too.
    """
    from_above: list[Tensor | None] = []
    for unit in range(len(losses), 0, -1):
        torch.autograd.backward(losses[unit - 1])
        arriving = [blocks.take_leaf_grad(unit), *from_above][:span]
        from_above = [blocks.backward(unit, gradient) for gradient in arriving]
    for gradient in from_above:
        blocks.backward(0, gradient)
