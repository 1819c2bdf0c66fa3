"""More keys and values for the same queries: each is copied for the heads that shared it (the way
back from Ainslie et al. 2023, "GQA").
"""

import torch

from lmlab.core.params import Params
from lmlab.model.models.base import LanguageModel
from lmlab.training.growths._shapes import Growing, growing
from lmlab.training.growths.base import Axis, Grown, Growth, copies


class Options(Params):
    """This part has none."""


class Heads(Growth):
    """key'_g = key_{g G // G'}, and so for values; heads that part now learn apart."""

    keys = ("groups",)

    def __init__(self, options: Options) -> None:
        pass

    def tensors(self, old: LanguageModel, new: LanguageModel) -> dict[str, Grown]:
        tensors = {}
        for name, axes in growing(old, new):
            layer = new.get_submodule(name.rpartition(".")[0].rpartition(".")[0])
            width = getattr(layer, "head_width", 1)
            tensors[name] = Grown(name, {each.number: _axis(each, width) for each in axes})
        return tensors


def _axis(growing: Growing, head_width: int) -> Axis:
    def beside(before: int, after: int) -> torch.Tensor:
        places = torch.arange(after, device="cpu")
        head = places // head_width * before // after
        return head * head_width + places % head_width

    sources = growing.sources(beside)
    return Axis(sources, gradient=1 / copies(sources))
