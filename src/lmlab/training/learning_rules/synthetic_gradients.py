"""Synthetic gradients (Jaderberg et al. 2017): blocks are trained on predicted gradients.

    grad at s_k = net_k(s_k),    net_k: least squares to the gradient at the input of block k + 1

At the output s of every block but the last stands a small net that predicts, from s (and, with
`targets`, the token to be predicted), the loss's gradient there. The block gets its gradients by
backprop from that prediction. The net is trained on the gradient at the input of the block above,
which itself comes from a prediction. The nets start by predicting zero, so at first only the last
block and the head are trained, which always get their exact gradients. The embedding counts as part
of the first block; a model of one block is trained by backprop. Cost: that of backprop and a
forward and a backward pass of each net.
"""

import torch
from pydantic import Field
from torch import Tensor, nn

from lmlab.core.params import Params
from lmlab.model.models.base import LanguageModel, next_token_loss
from lmlab.training.learning_rules._detached_blocks import DetachedBlocks
from lmlab.training.learning_rules._shapes import stream_widths
from lmlab.training.learning_rules.base import LearningRule
from lmlab.training.optimizers.base import Groups
from lmlab.training.widths import by_fans


class Options(Params):
    """Options of the rule."""

    hidden: int = Field(ge=0)
    targets: bool
    across: bool


class Predictor(nn.Module):
    """out(relu(into(s / size) + by_target[target])) / size: a predicted gradient at s, times B * T.

    Under normalisation a gradient shrinks as the stream s grows, and is orthogonal to s. The
    division by the size builds in the first; `across` projects out the component along s. Without
    that, the stream soon grows beyond all bounds.
    """

    def __init__(self, width: int, hidden: int, vocabulary_size: int, across: bool) -> None:
        super().__init__()
        self.across = across
        self.into = nn.Linear(width, hidden)
        self.by_target: nn.Parameter | None = None
        if vocabulary_size:
            self.by_target = nn.Parameter(torch.empty(vocabulary_size, hidden).normal_(std=0.5))
        self.out = nn.Linear(hidden, width)
        nn.init.zeros_(self.out.weight)
        nn.init.zeros_(self.out.bias)

    def forward(self, s_BTS: Tensor, targets_BT: Tensor) -> Tensor:
        size_BT1 = size(s_BTS)
        unit_BTS = s_BTS / size_BT1
        hidden_BTH = self.into(unit_BTS)
        if self.by_target is not None:
            hidden_BTH = hidden_BTH + nn.functional.embedding(targets_BT, self.by_target)
        prediction_BTS = self.out(hidden_BTH.relu())
        if self.across:
            along_BT1 = (prediction_BTS * unit_BTS).mean(dim=-1, keepdim=True)
            prediction_BTS = prediction_BTS - along_BT1 * unit_BTS
        return prediction_BTS / size_BT1


def size(s_BTS: Tensor) -> Tensor:
    """The root mean square at each position, at least 1e-6, shape (B, T, 1)."""
    return s_BTS.square().mean(dim=-1, keepdim=True).sqrt().clamp(min=1e-6)


class SyntheticGradients(LearningRule):
    """Its own parameters are the nets', trained on the mean square of (error * size of the stream).

    Under a parametrisation that follows the width, a gradient's entries shrink as the width grows
    and a net's outputs do not; so predictions are divided by the model's `width_ratio`, and errors
    multiplied by it.
    """

    backward = False
    cannot_overfit = "its predictions lag behind the gradients, which change as the blocks train"

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
        tables = []
        matrices = []
        vectors = []
        for name, parameter in self.named_parameters():
            if name.endswith("by_target"):
                tables.append(parameter)
            elif parameter.ndim == 2:
                matrices.append(parameter)
            else:
                vectors.append(parameter)
        return by_fans({"embeddings": tables, "matrices": matrices, "vectors": vectors})

    def predict(self, unit: int, s_BTS: Tensor, targets_BT: Tensor) -> Tensor:
        """The predicted gradient of the mean loss at the output of block `unit`, times B * T.

        Blocks are counted from 1.
        """
        return self.nets[unit - 1](s_BTS, targets_BT) / self.width_ratio

    def assign_gradients(
        self, model: LanguageModel, tokens_BT: Tensor, targets_BT: Tensor
    ) -> Tensor:
        blocks = DetachedBlocks(model, tokens_BT)
        token_count = targets_BT.numel()
        loss = next_token_loss(blocks.logits_BTV, targets_BT)
        torch.autograd.backward(loss)
        grad_output = blocks.take_leaf_grad(len(model.blocks))
        for unit in range(len(model.blocks), 1, -1):
            grad_input = blocks.backward(unit, grad_output)
            s_BTS = blocks.leaves[unit - 1].detach()
            prediction_BTS = self.predict(unit - 1, s_BTS, targets_BT)
            if grad_input is not None:
                error_BTS = self.width_ratio * (prediction_BTS - token_count * grad_input)
                torch.autograd.backward((error_BTS * size(s_BTS)).square().mean())
            grad_output = prediction_BTS.detach() / token_count
        blocks.backward(0, blocks.backward(1, grad_output))
        return loss.detach()
