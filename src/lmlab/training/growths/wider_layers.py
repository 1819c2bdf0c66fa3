"""More hidden units in the layers of a block, which nothing reads at first (Shen et al. 2022,
"Staged training for transformer language models").

The weights into new units are drawn, those out of them zero. So the model computes what it did, up
to the order of summing, and each new unit is another from the first step on.
"""

import torch
from torch import Tensor

from lmlab.core.params import Params
from lmlab.model.models.base import LanguageModel
from lmlab.training.growths._shapes import Growing, grown
from lmlab.training.growths.base import NEW, Axis, Grown, Growth


class Options(Params):
    """This part has none."""


class WiderLayers(Growth):
    """up' = [up; drawn], out' = [out, 0]."""

    keys = ("expansion", "state_expansion", "row_width")

    def __init__(self, options: Options) -> None:
        pass

    def tensors(self, old: LanguageModel, new: LanguageModel) -> dict[str, Grown]:
        return grown(old, new, _axis)


def _axis(growing: Growing) -> Axis:
    return Axis(growing.sources(_then_new), fill="zero" if growing.is_input else "drawn")


def _then_new(before: int, after: int) -> Tensor:
    """The old places, then new ones."""
    places = torch.arange(after, device="cpu")
    return torch.where(places < before, places, NEW)
