"""Frozen hidden layers (random features, Rahimi & Recht 2007): the head alone is trained.

    grad_W = dL/dW in the head, none in the blocks

It is the control for every rule that claims to train hidden layers. The head (final norm and
readout) gets its exact gradient. The blocks keep their initial weights, and so does the embedding
unless `embedding` is true; it then gets its exact gradient through the frozen blocks. Tied weights
get the gradient of their use as the readout, and with `embedding` also that of their use as the
embedding. Cost: a forward pass and the head's backward pass; with `embedding` also a backward pass
through all blocks, without gradients of their weights.
"""

import torch
from torch import Tensor

from lmlab.core.errors import UserError
from lmlab.core.params import Params
from lmlab.model.models.base import LanguageModel, next_token_loss
from lmlab.training.learning_rules._detached_blocks import last_block_output
from lmlab.training.learning_rules.base import LearningRule


class Options(Params):
    """Options of the rule."""

    embedding: bool


class Frozen(LearningRule):
    """It has no state."""

    backward = False
    cannot_overfit = "its hidden layers keep their initial weights"

    def __init__(self, options: Options, model: LanguageModel) -> None:
        super().__init__()
        if model.readout is None:
            raise UserError(
                "params.yaml: train.learning_rule: frozen trains what stands above the blocks, and"
                " in this model nothing does; choose a train.model with a readout"
            )
        self.embedding = options.embedding

    def assign_gradients(
        self, model: LanguageModel, tokens_BT: Tensor, targets_BT: Tensor
    ) -> Tensor:
        with torch.set_grad_enabled(self.embedding):
            s_BTS = last_block_output(model, tokens_BT)
        loss = next_token_loss(model.head(s_BTS), targets_BT)
        frozen_ids = {id(parameter) for parameter in model.blocks.parameters()}
        trained = [parameter for parameter in model.parameters() if id(parameter) not in frozen_ids]
        torch.autograd.backward(loss, inputs=trained)
        return loss.detach()
