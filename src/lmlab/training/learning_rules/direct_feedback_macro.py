"""Direct feedback alignment of blocks (Nøkland 2016; Launay et al. 2020): errors skip blocks.

    grad at the output of each block, and of the embedding = e B,    e = dL/dlogits, B fixed, random

As published, all places share one matrix (`shared`), and blocks end in a norm, through which e B is
sent back first; for blocks that do not, `normalised` puts a norm without weights there, for the
feedback alone. Below that, backprop is exact within the block; what reaches its input is dropped.
So the head (final norm and readout) gets its exact gradient, and blocks and embedding depend on no
other block's gradient: all could be trained at the same time. Cost: that of backprop, without
waiting for the blocks above, and V feedback weights for each number in the stream.
"""

import torch
from pydantic import Field
from torch import Tensor

from lmlab.core.errors import UserError
from lmlab.core.params import Params
from lmlab.model.models.base import LanguageModel, next_token_loss
from lmlab.training.learning_rules._detached_blocks import DetachedBlocks
from lmlab.training.learning_rules._feedback import draw_feedback
from lmlab.training.learning_rules._shapes import stream_widths
from lmlab.training.learning_rules.base import LearningRule

EPSILON = 1e-6
"""Added to a mean square before dividing by its root."""


class Options(Params):
    """Options of the rule."""

    feedback_scale: float = Field(gt=0)
    shared: bool
    normalised: bool


class DirectFeedbackMacro(LearningRule):
    """Its state is a B_VS for the embedding and each block, or one for all.

    Its numbers are `feedback_scale` times as large as the readout's initial weights.
    """

    backward = False

    def __init__(self, options: Options, model: LanguageModel) -> None:
        super().__init__()
        if model.readout is None:
            raise UserError(
                "params.yaml: train.learning_rule: direct_feedback_macro sends errors past what"
                " stands above the blocks, and in this model nothing does; choose a train.model"
                " with a readout"
            )
        self.options = options
        self.widths = stream_widths(model)
        drawn_widths = [max(self.widths)] if options.shared else self.widths
        for number, width in enumerate(drawn_widths):
            shape = (model.vocabulary_size, width)
            feedback_VS = draw_feedback(model.readout.weight, options.feedback_scale, shape)
            self.register_buffer(f"feedback_{number}", feedback_VS)

    def assign_gradients(
        self, model: LanguageModel, tokens_BT: Tensor, targets_BT: Tensor
    ) -> Tensor:
        blocks = DetachedBlocks(model, tokens_BT)
        blocks.logits_BTV.retain_grad()
        loss = next_token_loss(blocks.logits_BTV, targets_BT)
        torch.autograd.backward(loss)
        error_BTV = blocks.logits_BTV.grad
        assert error_BTV is not None
        for unit, width in enumerate(self.widths):
            number = 0 if self.options.shared else unit
            feedback_VS = self.get_buffer(f"feedback_{number}")[:, :width]
            signal_BTS = error_BTV @ feedback_VS.to(error_BTV.dtype)
            if self.options.normalised:
                signal_BTS = _back_through_norm(blocks.outputs[unit], signal_BTS)
            blocks.backward(unit, signal_BTS)
        return loss.detach()


def _back_through_norm(x_BTS: Tensor, signal_BTS: Tensor) -> Tensor:
    """The gradient at x, where `signal` is that at x / rms(x): orthogonal to x, size ~ 1 / rms(x).

    Without it a block would be pushed the same way for as long as an error lasts, and nothing would
    stop its output from growing.
    """
    x_BTS = x_BTS.detach().to(signal_BTS.dtype)
    scale_BT1 = (x_BTS.square().mean(dim=-1, keepdim=True) + EPSILON).rsqrt()
    y_BTS = x_BTS * scale_BT1
    along_BT1 = (y_BTS * signal_BTS).mean(dim=-1, keepdim=True)
    return scale_BT1 * (signal_BTS - y_BTS * along_BT1)
