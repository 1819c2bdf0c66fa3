"""Hidden layers frozen: the head alone learns. No rule to use but the control beside every rule
that claims to teach them.

What stands above the last block (final norm and readout) gets its exact gradient; the blocks stay
as they were drawn, and so does the embedding unless `embedding` lets it learn as well, exactly,
through the frozen blocks. With tied weights the shared matrix learns from what the readout makes of
it (and from the embedding, if that learns). It costs a forward pass and the backward pass of the
head alone, or with the embedding one down through all blocks without the gradients of their
weights.
"""

import torch
from torch import Tensor

from lmlab.core.errors import UserError
from lmlab.core.params import Params
from lmlab.model.models.base import LanguageModel, next_token_loss
from lmlab.training.learning_rules.base import LearningRule


class Options(Params):
    """Options of the rule."""

    embedding: bool


class Frozen(LearningRule):
    """It has no state."""

    backward = False
    short_of_one_batch = "its hidden layers stay as they were drawn"

    def __init__(self, options: Options, model: LanguageModel) -> None:
        super().__init__()
        if model.readout is None:
            raise UserError(
                "params.yaml: train.learning_rule: frozen teaches what stands above the blocks,"
                " and here nothing does;"
                " choose a train.model with a readout"
            )
        self.embedding = options.embedding

    def assign_gradients(
        self, model: LanguageModel, tokens_BT: Tensor, targets_BT: Tensor
    ) -> Tensor:
        with torch.set_grad_enabled(self.embedding):
            s_BTS = model.embed(tokens_BT)
            for block in model.blocks:
                s_BTS = block(s_BTS)
        loss = next_token_loss(model.head(s_BTS), targets_BT)
        of_blocks = {id(parameter) for parameter in model.blocks.parameters()}
        torch.autograd.backward(
            loss, inputs=[p for p in model.parameters() if id(p) not in of_blocks]
        )
        return loss.detach()
