"""Forward-forward (Hinton 2022): each block learns alone to tell real text from corrupted text.

A block's goodness at a token is the mean square of what it adds to the stream. A logistic loss asks
that it lie above a `threshold` where the text is real and below it where a token was replaced by
another of the batch: a share `corrupted` of the tokens is, and those alone count as negative. Most
blocks normalise what they read, so that they cannot take the goodness of those below for their own.

Replaced: the backward pass between blocks; no gradient leaves one, and none of the loss of
predicting the next token comes into any. Exact: the head, which learns that loss on what the last
block puts out. The embedding learns by the first block's own loss. Costs a forward pass for the
corrupted text, and no unit waits for another.
"""

import torch
from pydantic import Field
from torch import Tensor

from lmlab.core.errors import UserError
from lmlab.core.params import Params
from lmlab.model import noise
from lmlab.model.models.base import LanguageModel, next_token_loss
from lmlab.training.learning_rules._relaxing import value_of
from lmlab.training.learning_rules.base import LearningRule


class Options(Params):
    """Options of the rule."""

    threshold: float = Field(gt=0)
    corrupted: float = Field(gt=0, le=1)


class ForwardForward(LearningRule):
    """Real and corrupted text go through each block side by side."""

    backward = False
    short_of_one_batch = (
        "its blocks learn to know real text, not what comes next; the head alone"
        " learns that, on what they change"
    )

    def __init__(self, options: Options, model: LanguageModel) -> None:
        super().__init__()
        if model.readout is None or not model.plain_stream:
            raise UserError(
                "params.yaml: train.learning_rule: forward_forward needs blocks that add to a"
                " stream as wide as the model,"
                " and a readout; set train.model to such as transformer, with"
                " models.transformer.residual at plain"
            )
        self.threshold, self.corrupted = options.threshold, options.corrupted

    def assign_gradients(
        self, model: LanguageModel, tokens_BT: Tensor, targets_BT: Tensor
    ) -> Tensor:
        other_BT = corrupt(tokens_BT, self.corrupted)
        replaced_BT = other_BT != tokens_BT
        real_BTD = model.embed(tokens_BT)
        with noise.within(
            "corrupted"
        ):  # what dropout drops of one text is not what it drops of the other
            other_BTD = model.embed(other_BT)
        for block in model.blocks:
            real = block(real_BTD)
            with noise.within("corrupted"):
                other = block(other_BTD)
            local = contrast(
                goodness(real_BTD, real), goodness(other_BTD, other)[replaced_BT], self.threshold
            )
            torch.autograd.backward(local)
            real_BTD, other_BTD = value_of(real), value_of(other)
        loss = next_token_loss(model.head(real_BTD), targets_BT)
        torch.autograd.backward(loss)
        return loss.detach()


def corrupt(tokens_BT: Tensor, share: float) -> Tensor:
    """The tokens, a share of them replaced by tokens from anywhere in the batch."""
    device = tokens_BT.device
    drawn = torch.randint(
        tokens_BT.numel(),
        tokens_BT.shape,
        generator=noise.generator(device, "drawn"),
        device=device,
    )
    replaced = (
        torch.rand(tokens_BT.shape, generator=noise.generator(device, "replaced"), device=device)
        < share
    )
    return torch.where(replaced, tokens_BT.flatten()[drawn], tokens_BT)


def goodness(x_BTD: Tensor, y_BTD: Tensor) -> Tensor:
    """The mean square of what a block added, at each token."""
    return (y_BTD - x_BTD).square().mean(dim=-1)


def contrast(positive: Tensor, negative: Tensor, threshold: float) -> Tensor:
    """-log of the chance that goodness tells them right: its sigmoid, from the threshold on; means
    over each of the two.
    """
    wrong = torch.nn.functional.softplus(threshold - positive).mean()
    if negative.numel():  # none may have been replaced
        wrong = wrong + torch.nn.functional.softplus(negative - threshold).mean()
    return wrong
