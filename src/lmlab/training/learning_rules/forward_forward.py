"""Forward-forward (Hinton 2022): each block alone learns to tell real text from corrupted text.

    L_k = mean softplus(threshold - g_real) + mean softplus(g_corrupted - threshold),
    g = mean over features of (what block k adds to the stream)^2, the goodness of a token

The second text is the batch with a share `corrupted` of its tokens replaced by others from the
batch; only replaced tokens count as negative. Most blocks normalise their input, so they cannot
take the goodness of the blocks below for their own.

No gradient passes between blocks, and none of the next-token loss reaches any block. The head is
trained exactly, on that loss, from the last block's output. The embedding is trained by the first
block's loss. Cost: that of backprop and a forward and backward pass for the corrupted text; no
block waits for another.
"""

import torch
from pydantic import Field
from torch import Tensor, nn

from lmlab.core.errors import UserError
from lmlab.core.params import Params
from lmlab.model import noise
from lmlab.model.models.base import LanguageModel, next_token_loss
from lmlab.training.learning_rules._detached_blocks import leaf_copy
from lmlab.training.learning_rules.base import LearningRule


class Options(Params):
    """Options of the rule."""

    threshold: float = Field(gt=0)
    corrupted: float = Field(gt=0, le=1)


class ForwardForward(LearningRule):
    """It has no state. Real and corrupted text go through each block side by side."""

    backward = False
    cannot_overfit = (
        "its blocks learn to recognise real text, not to predict the next token; only the head"
        " learns that, from features that keep changing"
    )

    def __init__(self, options: Options, model: LanguageModel) -> None:
        super().__init__()
        if model.readout is None or not model.plain_stream:
            raise UserError(
                "params.yaml: train.learning_rule: forward_forward needs blocks that add to a"
                " stream as wide as the model, and a readout; set train.model to one such as"
                " transformer, with models.transformer.residual at plain"
            )
        self.threshold = options.threshold
        self.corrupted = options.corrupted

    def assign_gradients(
        self, model: LanguageModel, tokens_BT: Tensor, targets_BT: Tensor
    ) -> Tensor:
        corrupted_BT = corrupt(tokens_BT, self.corrupted)
        replaced_BT = corrupted_BT != tokens_BT
        real_BTD = model.embed(tokens_BT)
        with noise.within("corrupted"):  # dropout masks of its own
            corrupted_BTD = model.embed(corrupted_BT)
        for block in model.blocks:
            real_output_BTD = block(real_BTD)
            with noise.within("corrupted"):
                corrupted_output_BTD = block(corrupted_BTD)
            positive_BT = goodness(real_BTD, real_output_BTD)
            negative_N = goodness(corrupted_BTD, corrupted_output_BTD)[replaced_BT]
            torch.autograd.backward(contrast(positive_BT, negative_N, self.threshold))
            real_BTD = leaf_copy(real_output_BTD)
            corrupted_BTD = leaf_copy(corrupted_output_BTD)
        loss = next_token_loss(model.head(real_BTD), targets_BT)
        torch.autograd.backward(loss)
        return loss.detach()


def corrupt(tokens_BT: Tensor, share: float) -> Tensor:
    """The tokens, each replaced with probability `share` by one from anywhere in the batch."""
    device = tokens_BT.device
    shape = tokens_BT.shape
    source_rng = noise.generator(device, "drawn")
    source_BT = torch.randint(tokens_BT.numel(), shape, generator=source_rng, device=device)
    replaced_rng = noise.generator(device, "replaced")
    replaced_BT = torch.rand(shape, generator=replaced_rng, device=device) < share
    return torch.where(replaced_BT, tokens_BT.flatten()[source_BT], tokens_BT)


def goodness(x_BTD: Tensor, y_BTD: Tensor) -> Tensor:
    """The mean square of what a block added to x, at each token."""
    return (y_BTD - x_BTD).square().mean(dim=-1)


def contrast(positive: Tensor, negative: Tensor, threshold: float) -> Tensor:
    """Logistic loss: mean softplus(threshold - positive) + mean softplus(negative - threshold).

    Without negatives (no token may have been replaced) it is the first mean alone.
    """
    loss = nn.functional.softplus(threshold - positive).mean()
    if negative.numel():
        loss = loss + nn.functional.softplus(negative - threshold).mean()
    return loss
