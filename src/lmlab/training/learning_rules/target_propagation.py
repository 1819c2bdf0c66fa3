"""Difference target propagation (Lee et al. 2015; Meulemans et al. 2020): each block is told what
it should have put out.

The last block's target is its output, moved `step` down the slope of the loss. Targets below come
through learned inverses g of the blocks: t[k-1] = x[k-1] + g(t[k]) - g(x[k]), a difference in which
g's own error cancels. A block then moves towards its target. An inverse starts as the identity,
since a block adds to its input, plus a small net that learns, on inputs with `noise`, to undo its
block; it looks at each token alone, so what a block moves between tokens it undoes on average only.

Replaced: the transposed Jacobian of every block, by its inverse. Exact: within a block, and at the
head. The local losses are scaled so that with inverses that are the identity every unit's signal is
the loss's gradient at the last block's output. Costs another forward pass, at the noisy inputs, and
the inverses' training.
"""

from collections.abc import Callable, Sequence

import torch
from pydantic import Field
from torch import Tensor, nn

from lmlab.core.errors import UserError
from lmlab.core.params import Params
from lmlab.model import noise
from lmlab.model.models.base import LanguageModel, next_token_loss
from lmlab.training.learning_rules._relaxing import taken_apart, teach
from lmlab.training.learning_rules.base import LearningRule


class Options(Params):
    """Options of the rule."""

    step: float = Field(gt=0)
    noise: float = Field(gt=0)
    expansion: float = Field(gt=0, le=1e6)


class Inverse(nn.Module):
    """y + out(tanh(into(normalised y))) at each token alone, with `out` zero in the beginning."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.into, self.out = nn.Linear(width, hidden), nn.Linear(hidden, width, bias=False)
        nn.init.zeros_(self.out.weight)

    def forward(self, y_BTD: Tensor) -> Tensor:
        return y_BTD + self.out(self.into(nn.functional.rms_norm(y_BTD, y_BTD.shape[-1:])).tanh())


class TargetPropagation(LearningRule):
    """One inverse for each block, in the order of the blocks; that of the first gives the embedding
    its target.
    """

    backward = False

    def __init__(self, options: Options, model: LanguageModel) -> None:
        super().__init__()
        if not model.plain_stream:
            raise UserError(
                "params.yaml: train.learning_rule: target_propagation inverts blocks from one"
                " width to the same, and those"
                " of this model hand on more; set models.transformer.residual to plain"
            )
        self.step, self.noise = options.step, options.noise
        hidden = max(1, round(options.expansion * model.width))
        self.inverses = nn.ModuleList(Inverse(model.width, hidden) for _ in model.blocks)
        self.follow_width(options, model)

    def assign_gradients(
        self, model: LanguageModel, tokens_BT: Tensor, targets_BT: Tensor
    ) -> Tensor:
        outputs, values = taken_apart(model, tokens_BT)
        loss = next_token_loss(model.head(values[-1]), targets_BT)
        torch.autograd.backward(loss)
        slope = values[-1].grad
        assert slope is not None
        per_token = (
            self.step * targets_BT.numel()
        )  # the slope is that of the mean loss, the step is taken on a token's own
        with torch.no_grad():
            wanted = targets(list(self.inverses), values, values[-1] - per_token * slope)
        teach(
            outputs,
            [
                (value.detach() - target) / per_token
                for value, target in zip(values, wanted, strict=True)
            ],
        )
        self._teach_inverses(model, values[:-1])
        return loss.detach()

    def _teach_inverses(self, model: LanguageModel, inputs: list[Tensor]) -> None:
        """Each to give back the noisy input that its block made its output from: the mean square of
        what is amiss.

        Dropout drops other numbers there, as an inverse cannot know which.
        """
        for number, (block, inverse, x_BTD) in enumerate(
            zip(model.blocks, self.inverses, inputs, strict=True)
        ):
            with torch.no_grad(), noise.within("inverses"):
                size = x_BTD.square().mean().sqrt()
                noisy_BTD = x_BTD + self.noise * size * noise.normal(
                    x_BTD, f"input of block {number}"
                )
                y_BTD = block(noisy_BTD)
            amiss_BTD = (inverse(y_BTD) - noisy_BTD) / size
            torch.autograd.backward(amiss_BTD.square().mean())


def targets(
    inverses: Sequence[Callable[[Tensor], Tensor]], values: list[Tensor], top: Tensor
) -> list[Tensor]:
    """A target for every unit's output, the embedding's first, given the last one's."""
    found = [top]
    for inverse, below, above in zip(
        reversed(inverses), values[-2::-1], values[:0:-1], strict=True
    ):
        found.insert(0, below + (inverse(found[0]) - inverse(above)))
    return found
