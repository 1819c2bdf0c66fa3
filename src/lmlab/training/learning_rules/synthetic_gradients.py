"""Synthetic gradients (Jaderberg et al. 2017): blocks learn from predictions of the gradient
instead of waiting for it.

At the output of every block but the last stands a small net that guesses, from that output (and the
token to be predicted, with `targets`), what the gradient there will be. The block and the rest
learn by backprop from the guess; the net learns from the gradient at the input of the block above,
which goes back to a guess itself. The nets begin with guessing zero, so at first only the last
block and the head learn, exactly as those always do; the embedding belongs to the first block. One
block alone learns by backprop. It costs what backprop does and a forward and a backward pass of
each net.
"""

import torch
from pydantic import Field
from torch import Tensor, nn

from lmlab.core.params import Params
from lmlab.model.models.base import LanguageModel, next_token_loss
from lmlab.training.learning_rules._cutting import Pieces, stream_widths
from lmlab.training.learning_rules.base import LearningRule
from lmlab.training.optimizers.base import Groups
from lmlab.training.widths import by_fans


class Options(Params):
    """Options of the rule."""

    hidden: int = Field(ge=0)
    targets: bool
    across: bool


class Predictor(nn.Module):
    """A guess at the gradient at s_BTS times the batch's tokens: out(relu(into(norm(s)) +
    by_target)) / size of s.

    Under normalisation a gradient is the smaller the larger the stream has become, and across it,
    never along. The first is built in, the second where `across` says so: else the stream is soon
    pushed beyond all bounds.
    """

    def __init__(self, width: int, hidden: int, vocabulary_size: int, across: bool) -> None:
        super().__init__()
        self.across = across
        self.into = nn.Linear(width, hidden)
        self.by_target = (
            nn.Parameter(torch.empty(vocabulary_size, hidden).normal_(std=0.5))
            if vocabulary_size
            else None
        )
        self.out = nn.Linear(hidden, width)
        nn.init.zeros_(self.out.weight)
        nn.init.zeros_(self.out.bias)

    def forward(self, s_BTS: Tensor, targets_BT: Tensor) -> Tensor:
        size_BT1 = size(s_BTS)
        unit_BTS = s_BTS / size_BT1
        hidden = self.into(unit_BTS)
        if self.by_target is not None:
            hidden = hidden + nn.functional.embedding(targets_BT, self.by_target)
        guess_BTS = self.out(hidden.relu())
        if self.across:
            guess_BTS = guess_BTS - (guess_BTS * unit_BTS).mean(dim=-1, keepdim=True) * unit_BTS
        return guess_BTS / size_BT1


def size(s_BTS: Tensor) -> Tensor:
    """The root mean square at each position, shape (B, T, 1), kept from zero."""
    return s_BTS.square().mean(dim=-1, keepdim=True).sqrt().clamp(min=1e-6)


class SyntheticGradients(LearningRule):
    """Its own parameters are the nets'. Their loss is the mean square of their error times the
    stream's size.

    Where a parametrisation follows the width, a gradient's numbers get smaller as their number
    grows; a net's output does not, so it is divided by the model's `width_ratio`, and the error
    multiplied.
    """

    backward = False
    short_of_one_batch = "its guesses trail behind the gradients, which change as the blocks learn"

    def __init__(self, options: Options, model: LanguageModel) -> None:
        super().__init__()
        vocabulary_size = model.vocabulary_size if options.targets else 0
        widths = stream_widths(model)[1:-1]
        self.nets = nn.ModuleList(
            Predictor(width, options.hidden or width, vocabulary_size, options.across)
            for width in widths
        )
        self.width_ratio = model.width_ratio
        self.follow_width(options, model)

    def own_groups(self, model: LanguageModel) -> Groups:
        tables = [
            net.by_target
            for net in self.nets
            if isinstance(net, Predictor) and net.by_target is not None
        ]
        maps = [
            parameter
            for name, parameter in self.named_parameters()
            if not name.endswith("by_target")
        ]
        of_maps = {
            "matrices": [p for p in maps if p.ndim == 2],
            "vectors": [p for p in maps if p.ndim == 1],
        }
        return by_fans({"embeddings": tables, **of_maps})

    def predict(self, number: int, s_BTS: Tensor, targets_BT: Tensor) -> Tensor:
        """The guess at the mean loss's gradient at block `number`'s output, counted from 1, times
        the batch's tokens.
        """
        return self.nets[number - 1](s_BTS, targets_BT) / self.width_ratio

    def assign_gradients(
        self, model: LanguageModel, tokens_BT: Tensor, targets_BT: Tensor
    ) -> Tensor:
        pieces, tokens = Pieces(model, tokens_BT), targets_BT.numel()
        loss = next_token_loss(pieces.logits_BTV, targets_BT)
        torch.autograd.backward(loss)
        gradient = pieces.arrived(len(model.blocks))
        for number in range(len(model.blocks), 1, -1):
            at_input = pieces.teach(number, gradient)
            s_BTS = pieces.copies[number - 1].detach()
            guess = self.predict(number - 1, s_BTS, targets_BT)
            if at_input is not None:
                amiss_BTS = self.width_ratio * (guess - tokens * at_input)
                torch.autograd.backward((amiss_BTS * size(s_BTS)).square().mean())
            gradient = guess.detach() / tokens
        pieces.teach(0, pieces.teach(1, gradient))
        return loss.detach()
