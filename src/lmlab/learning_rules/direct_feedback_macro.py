"""Direct feedback alignment, block by block (Nøkland 2016; Launay et al. 2020): each block hears of the error at once.

What arrives at the output of the embedding and of every block is e B: the error at the logits, e = dL/dlogits, times a
fixed random matrix of that place's own. Below that, backprop within the block; what leaves a block at its input is dropped.
So the head (final norm and readout) has its exact gradient, blocks and embedding need no other's, and all could learn at
one time. It costs what backprop does without waiting for the blocks above, and V numbers of feedback for each of the
stream's.
"""

import torch
from pydantic import Field
from torch import Tensor

from lmlab.cutting import Pieces, drawn_like, stream_widths
from lmlab.errors import UserError
from lmlab.learning_rules.base import LearningRule
from lmlab.models.base import LanguageModel, next_token_loss
from lmlab.params import Params


class Options(Params):
    """Options of the rule."""

    feedback_scale: float = Field(gt=0)


class DirectFeedbackMacro(LearningRule):
    """Its state is a B_VS for the embedding and each block, as large as the readout's weights are at first."""

    backward = False
    short_of_one_batch = (
        "it learns it in the end, but unsteadily: fixed feedback goes on pushing a block one way while an error lasts"
    )

    def __init__(self, options: Options, model: LanguageModel) -> None:
        super().__init__()
        if model.readout is None:
            raise UserError(
                "params.yaml: train.learning_rule: direct_feedback_macro sends errors past what stands above the blocks, and"
                " here nothing does; choose a train.model with a readout"
            )
        for number, width in enumerate(stream_widths(model)):
            shape = (model.vocabulary, width)
            self.register_buffer(f"feedback_{number}", drawn_like(model.readout.weight, options.feedback_scale, shape))

    def assign_gradients(self, model: LanguageModel, tokens_BT: Tensor, targets_BT: Tensor) -> Tensor:
        pieces = Pieces(model, tokens_BT)
        pieces.logits_BTV.retain_grad()
        loss = next_token_loss(pieces.logits_BTV, targets_BT)
        torch.autograd.backward(loss)
        error_BTV = pieces.logits_BTV.grad
        assert error_BTV is not None
        for number in range(len(pieces.outputs)):
            pieces.teach(number, error_BTV @ self.get_buffer(f"feedback_{number}").to(error_BTV.dtype))
        return loss.detach()
