"""Interlocking backpropagation (Gomez et al. 2022): local losses whose gradients reach a few blocks
down, and overlap.

Each block but the last has a head of its own (a norm without weights, then a linear map to the
vocabulary), which predicts the next token and learns beside it; the last block has the model's. The
gradient of a loss goes down through `span` blocks, its own included, and no farther; blocks learn
from the sum of what comes by, and the embedding belongs to the first. With span 1 that is
`block_local` without similarities; with all blocks, backprop from the sum of all losses (of a
mixture of experts, the penalty counts once for each that comes by). It costs a readout and `span`
backward passes for each block.
"""

from pydantic import Field
from torch import Tensor

from lmlab.core.params import Params
from lmlab.model.models.base import LanguageModel, next_token_loss
from lmlab.training.learning_rules._cutting import LocalHeads, Pieces, teach_by_local_losses
from lmlab.training.learning_rules.base import LearningRule
from lmlab.training.optimizers.base import Groups
from lmlab.training.widths import by_fans


class Options(Params):
    """Options of the rule."""

    span: int = Field(ge=1)


class Interlocking(LearningRule):
    """Its own parameters are the blocks' readouts."""

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
        pieces = Pieces(model, tokens_BT)
        losses = [
            self.heads.loss(number, s_BTS, targets_BT)
            for number, s_BTS in enumerate(pieces.copies[1:-1])
        ]
        last = next_token_loss(pieces.logits_BTV, targets_BT)
        teach_by_local_losses(pieces, [*losses, last], self.span)
        return last.detach()
