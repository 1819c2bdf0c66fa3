"""Interlocking backpropagation (Gomez et al. 2022): local losses that reach a few blocks down.

    grad of block k = sum over i = k ... k + span - 1 of dL_i / d(block k),    L_i: loss at block i

Each block but the last has an output head of its own (RMS normalisation, then a linear map to the
vocabulary), which predicts the next token and is trained with it; the last block has the model's
head. The gradient of a loss travels back through `span` blocks, its own included, and stops; a
block gets the sum of the gradients that reach it. The embedding counts as part of the first block.
Span 1 is `block_local` without similarity; a span of all blocks is backprop on the sum of all
losses, where a mixture of experts' balancing penalty counts once for each gradient that passes
through. Cost: an output head and `span` backward passes for each block.
"""

from pydantic import Field
from torch import Tensor

from lmlab.core.params import Params
from lmlab.model.models.base import LanguageModel, next_token_loss
from lmlab.training.learning_rules._detached_blocks import DetachedBlocks
from lmlab.training.learning_rules._local_losses import LocalHeads, backprop_local_losses
from lmlab.training.learning_rules.base import LearningRule
from lmlab.training.optimizers.base import Groups
from lmlab.training.widths import by_fans


class Options(Params):
    """Options of the rule."""

    span: int = Field(ge=1)


class Interlocking(LearningRule):
    """Its own parameters are the blocks' output heads."""

    backward = False

    def __init__(self, options: Options, model: LanguageModel) -> None:
        super().__init__()
        self.span = options.span
        self.heads = LocalHeads(model)
        self.follow_width(options, model)

    def own_groups(self, model: LanguageModel) -> Groups:
        return by_fans({"readout": list(self.parameters())})

    def assign_gradients(
        self, model: LanguageModel, tokens_BT: Tensor, targets_BT: Tensor
    ) -> Tensor:
        blocks = DetachedBlocks(model, tokens_BT)
        losses = [
            self.heads.loss(number, s_BTS, targets_BT)
            for number, s_BTS in enumerate(blocks.leaves[1:-1])
        ]
        final_loss = next_token_loss(blocks.logits_BTV, targets_BT)
        backprop_local_losses(blocks, [*losses, final_loss], self.span)
        return final_loss.detach()
