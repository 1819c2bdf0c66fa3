"""The blocks over again (Du et al. 2024, "Stacking your transformers": G_stack).

The larger model does not compute what the smaller one does: its loss begins higher.
"""

from lmlab.core.params import Params
from lmlab.model.models.base import LanguageModel
from lmlab.training.growths import _depth
from lmlab.training.growths.base import Grown, Growth


class Options(Params):
    """This part has none."""


class Stacked(Growth):
    """block'_j = block_{j mod L}, with the optimizer's state."""

    preserves = False
    keys = _depth.KEYS

    def __init__(self, options: Options) -> None:
        pass

    def tensors(self, old: LanguageModel, new: LanguageModel) -> dict[str, Grown]:
        return _depth.over_again(old, new)
