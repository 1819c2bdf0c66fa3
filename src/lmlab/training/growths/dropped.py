"""The way back: the blocks that matter least are left out (Men et al. 2024, "ShortGPT", by another
measure).

How much a block matters is how much the loss on training text rises when the stream passes it by,
each block alone. What the smaller model computes is not what the larger one did.
"""

import torch
from torch import Tensor

from lmlab.core.errors import UserError
from lmlab.core.params import Params
from lmlab.model.models.base import LanguageModel, next_token_loss
from lmlab.training.growths import _depth
from lmlab.training.growths.base import Grown, Growth


class Options(Params):
    """This part has none."""


class Dropped(Growth):
    """The L' blocks of the largest L(without the block) - L(with it), in their order."""

    preserves = False
    shrinks = True
    keys = _depth.KEYS

    def __init__(self, options: Options) -> None:
        self.importance: list[float] = []

    @torch.no_grad()
    def look(self, old: LanguageModel, tokens_BS: Tensor) -> None:
        self.importance = [
            loss_without(old, number, tokens_BS) for number in range(len(old.blocks))
        ]

    def tensors(self, old: LanguageModel, new: LanguageModel) -> dict[str, Grown]:
        importance = self.importance or [0.0] * len(old.blocks)
        numbers = range(len(old.blocks))
        by_importance = sorted(numbers, key=lambda number: importance[number], reverse=True)
        kept = sorted(by_importance[: len(new.blocks)])
        for place, number in enumerate(kept):
            if not _depth.matches(old, number, new, place):
                raise UserError(
                    f"params.yaml: start.growth: dropped cannot put block {number} of"
                    f" models.{new.choice.name} at place {place}, where blocks are of another kind;"
                    " choose another depth"
                )
        return _depth.at_places(new, dict(enumerate(kept)))


def loss_without(model: LanguageModel, left_out: int, tokens_BS: Tensor) -> float:
    """The loss in nats per token where the stream passes by one block."""
    x_BTD = model.embed(tokens_BS[:, :-1])
    for number, block in enumerate(model.blocks):
        if number != left_out:
            x_BTD = block(x_BTD)
    return float(next_token_loss(model.head(x_BTD), tokens_BS[:, 1:]))
