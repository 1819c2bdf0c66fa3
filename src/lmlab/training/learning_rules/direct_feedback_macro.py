"""Direct feedback alignment, block by block (Nøkland 2016; Launay et al. 2020): each block hears of
the error at once.

What arrives at the output of the embedding and of every block is e B: the error at the logits, e =
dL/dlogits, times a fixed random matrix. As published, one matrix serves all places, and blocks end
in a norm, through which e B goes down first; where blocks do not, one without weights is put there
for the feedback alone. Below that, backprop within the block; what leaves a block at its input is
dropped. So the head (final norm and readout) has its exact gradient, blocks and embedding need no
other's, and all could learn at one time. It costs what backprop does without waiting for the blocks
above, and V numbers of feedback for each of the stream's.
"""

import torch
from pydantic import Field
from torch import Tensor

from lmlab.core.errors import UserError
from lmlab.core.params import Params
from lmlab.model.models.base import LanguageModel, next_token_loss
from lmlab.training.learning_rules._cutting import Pieces, drawn_like, stream_widths
from lmlab.training.learning_rules.base import LearningRule

EPSILON = 1e-6
"""Added to the mean square of what is normalised, so that nothing is divided by zero."""


class Options(Params):
    """Options of the rule."""

    feedback_scale: float = Field(gt=0)
    shared: bool
    normalised: bool


class DirectFeedbackMacro(LearningRule):
    """Its state is a B_VS for the embedding and each block, or one for all, drawn as large as the
    readout's weights.
    """

    backward = False
    short_of_one_batch = ""

    def __init__(self, options: Options, model: LanguageModel) -> None:
        super().__init__()
        if model.readout is None:
            raise UserError(
                "params.yaml: train.learning_rule: direct_feedback_macro sends errors past what"
                " stands above the blocks, and"
                " here nothing does; choose a train.model with a readout"
            )
        self.options = options
        self.widths = stream_widths(model)
        for number, width in enumerate([max(self.widths)] if options.shared else self.widths):
            shape = (model.vocabulary_size, width)
            self.register_buffer(
                f"feedback_{number}",
                drawn_like(model.readout.weight, options.feedback_scale, shape),
            )

    def assign_gradients(
        self, model: LanguageModel, tokens_BT: Tensor, targets_BT: Tensor
    ) -> Tensor:
        pieces = Pieces(model, tokens_BT)
        pieces.logits_BTV.retain_grad()
        loss = next_token_loss(pieces.logits_BTV, targets_BT)
        torch.autograd.backward(loss)
        error_BTV = pieces.logits_BTV.grad
        assert error_BTV is not None
        for number, width in enumerate(self.widths):
            feedback_VS = self.get_buffer(f"feedback_{0 if self.options.shared else number}")[
                :, :width
            ]
            signal_BTS = error_BTV @ feedback_VS.to(error_BTV.dtype)
            if self.options.normalised:
                signal_BTS = _through_a_norm(pieces.outputs[number], signal_BTS)
            pieces.teach(number, signal_BTS)
        return loss.detach()


def _through_a_norm(x_BTS: Tensor, signal_BTS: Tensor) -> Tensor:
    """The gradient at x if `signal` is that at x over its root mean square: none along x, and less
    the larger x is.

    Without it a block is pushed one way for as long as an error lasts, and nothing tells it that it
    has gone far enough.
    """
    x_BTS = x_BTS.detach().to(signal_BTS.dtype)
    scale_BT1 = (x_BTS.square().mean(dim=-1, keepdim=True) + EPSILON).rsqrt()
    y_BTS = x_BTS * scale_BT1
    return scale_BT1 * (signal_BTS - y_BTS * (y_BTS * signal_BTS).mean(dim=-1, keepdim=True))
