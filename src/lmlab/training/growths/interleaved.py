"""New blocks between the old ones that add nothing at first (Chen et al. 2016, "Net2Net"; Shen et
al. 2022, "Staged training for transformer language models").

Each is a copy of the block below it whose output projections are zero, so the stream passes as it
was, to the last bit. Only these projections have a gradient in the first step.
"""

from lmlab.core.errors import UserError
from lmlab.core.params import Params
from lmlab.model.models.base import LanguageModel
from lmlab.training.growths import _depth
from lmlab.training.growths.base import Grown, Growth


class Options(Params):
    """This part has none."""


class Interleaved(Growth):
    """block'_j = block_i for j = ceil(i L'/L), or the next of its kind; between them x + 0."""

    keys = _depth.KEYS

    def __init__(self, options: Options) -> None:
        pass

    def tensors(self, old: LanguageModel, new: LanguageModel) -> dict[str, Grown]:
        before, after = len(old.blocks), len(new.blocks)
        places: dict[int, int] = {}
        for number in range(before):
            place = max(-(-number * after // before), max(places, default=-1) + 1)
            while place < after and not _depth.matches(old, number, new, place):
                place += 1
            if place >= after:
                raise UserError(
                    f"params.yaml: start.growth: interleaved finds no place for block {number} of"
                    f" models.{new.choice.name}; choose appended, or another depth"
                )
            places[place] = number
        return _depth.with_new_blocks(old, new, places)
