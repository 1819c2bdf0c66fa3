"""Difference target propagation (Lee et al. 2015; Meulemans et al. 2020): blocks get targets.

    t_K = x_K - step dL/dx_K,    t_(k-1) = x_(k-1) + g_k(t_k) - g_k(x_k),    g_k: inverse of block k

x_k is the output of block k (0: the embedding). The last block's target is its output moved down
the gradient of each token's own loss. Lower targets come through learned inverses g; taking a
difference cancels g's own error. Each block then reduces (x_k - t_k)^2 / 2. An inverse is the
identity, since a block adds to its input, plus a small net trained to reconstruct the block's input
with `noise` added from its output. It reads each token alone, so what a block moves between tokens
it undoes only on average.

The inverses replace the blocks' transposed Jacobians; autograd is exact within a block and at the
head. Local losses are scaled so that with identity inverses every unit's signal is the loss's
gradient at the last block's output. Cost: that of backprop, another forward pass on noisy inputs,
and the training of the inverses.
"""

from collections.abc import Callable, Sequence

import torch
from pydantic import Field
from torch import Tensor, nn

from lmlab.core.errors import UserError
from lmlab.core.params import Params
from lmlab.model import noise
from lmlab.model.models.base import LanguageModel, next_token_loss
from lmlab.training.learning_rules._detached_blocks import DetachedBlocks
from lmlab.training.learning_rules.base import LearningRule


class Options(Params):
    """Options of the rule."""

    step: float = Field(gt=0)
    noise: float = Field(gt=0)
    expansion: float = Field(gt=0, le=1e6)


class Inverse(nn.Module):
    """y + out(tanh(into(RMS-normalised y))) at each token alone, with `out` zero at first."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.into = nn.Linear(width, hidden)
        self.out = nn.Linear(hidden, width, bias=False)
        nn.init.zeros_(self.out.weight)

    def forward(self, y_BTD: Tensor) -> Tensor:
        normalised_BTD = nn.functional.rms_norm(y_BTD, y_BTD.shape[-1:])
        hidden_BTH = self.into(normalised_BTD).tanh()
        return y_BTD + self.out(hidden_BTH)


class TargetPropagation(LearningRule):
    """Its own parameters are one inverse for each block; the first gives the embedding's target."""

    backward = False

    def __init__(self, options: Options, model: LanguageModel) -> None:
        super().__init__()
        if not model.plain_stream:
            raise UserError(
                "params.yaml: train.learning_rule: target_propagation inverts blocks whose output"
                " is as wide as their input, and those of this model output more; set"
                " models.transformer.residual to plain"
            )
        self.step = options.step
        self.noise = options.noise
        hidden = max(1, round(options.expansion * model.width))
        self.inverses = nn.ModuleList(Inverse(model.width, hidden) for _ in model.blocks)
        self.follow_width(options, model)

    def assign_gradients(
        self, model: LanguageModel, tokens_BT: Tensor, targets_BT: Tensor
    ) -> Tensor:
        blocks = DetachedBlocks(model, tokens_BT, full_precision=True)
        x = blocks.leaves
        loss = next_token_loss(blocks.logits_BTV, targets_BT)
        torch.autograd.backward(loss)
        slope = x[-1].grad
        assert slope is not None
        # the slope is that of the mean loss, and the step is taken on a token's own loss
        step_per_token = self.step * targets_BT.numel()
        with torch.no_grad():
            top_target = x[-1] - step_per_token * slope
            block_targets = targets(list(self.inverses), x, top_target)
        signals = [
            (output.detach() - target) / step_per_token
            for output, target in zip(x, block_targets, strict=True)
        ]
        blocks.backward_all(signals)
        self._train_inverses(model, x[:-1])
        return loss.detach()

    def _train_inverses(self, model: LanguageModel, inputs: list[Tensor]) -> None:
        """Add the gradients of each inverse's mean squared error in reconstructing a block's input.

        The input has noise added, and the error is relative to the input's size. Dropout masks
        differ from the forward pass's, since an inverse cannot know those.
        """
        pairs = zip(model.blocks, self.inverses, inputs, strict=True)
        for number, (block, inverse, x_BTD) in enumerate(pairs):
            with torch.no_grad(), noise.within("inverses"):
                size = x_BTD.square().mean().sqrt()
                noise_BTD = noise.normal(x_BTD, f"input of block {number}")
                noisy_BTD = x_BTD + self.noise * size * noise_BTD
                y_BTD = block(noisy_BTD)
            error_BTD = (inverse(y_BTD) - noisy_BTD) / size
            torch.autograd.backward(error_BTD.square().mean())


def targets(
    inverses: Sequence[Callable[[Tensor], Tensor]], outputs: list[Tensor], top_target: Tensor
) -> list[Tensor]:
    """A target for every unit's output, the embedding's first, from that of the last block."""
    target = top_target
    from_top = [target]
    for unit in range(len(inverses), 0, -1):
        inverse = inverses[unit - 1]
        target = outputs[unit - 1] + (inverse(target) - inverse(outputs[unit]))
        from_top.append(target)
    return from_top[::-1]
