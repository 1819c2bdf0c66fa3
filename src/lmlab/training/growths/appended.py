"""New blocks above the old ones that add nothing at first (Shen et al. 2022, "Staged training for
transformer language models").

As `interleaved`, for models in which a block's place decides what it is, such as convolutions whose
dilation grows from block to block.
"""

from lmlab.core.params import Params
from lmlab.model.models.base import LanguageModel
from lmlab.training.growths import _depth
from lmlab.training.growths.base import Grown, Growth


class Options(Params):
    """This part has none."""


class Appended(Growth):
    """block'_j = block_j; above these x + 0."""

    keys = _depth.KEYS

    def __init__(self, options: Options) -> None:
        pass

    def tensors(self, old: LanguageModel, new: LanguageModel) -> dict[str, Grown]:
        return _depth.with_new_blocks(old, new, {place: place for place in range(len(old.blocks))})
