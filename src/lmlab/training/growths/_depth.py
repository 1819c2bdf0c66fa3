"""Blocks of a deeper model from those of a shallower one."""

import re
from collections.abc import Mapping

from torch import Size

from lmlab.core.errors import UserError
from lmlab.model.models.base import LanguageModel
from lmlab.training.growths.base import Grown

KEYS = ("depth", "layers")
"""The options that say how many blocks there are."""
OUTPUT = re.compile(r"(^|\.)(out|value_gate|from_input|from_last)\.(weight|bias)$")
"""What a block adds to the stream is zero where these are."""
_BLOCK = re.compile(r"^blocks\.(\d+)\.")


def with_new_blocks(
    old: LanguageModel, new: LanguageModel, places: Mapping[int, int]
) -> dict[str, Grown]:
    """The new model with the old blocks at some places; between and above them stand copies of the
    nearest block, of those below first, that has tensors of the same shapes. They add nothing.
    """
    before, after = _blocks(old), _blocks(new)
    sources = dict(places)
    for place, tensors in after.items():
        if place not in places:
            alike = [number for number in before if before[number] == tensors]
            if not alike:
                raise UserError(
                    f"params.yaml: start.growth: models.{new.choice.name} has no block yet like its"
                    f" block {place}, so none can be put there; choose another depth"
                )
            old_places = {number: place for place, number in places.items()}
            sources[place] = min(alike, key=lambda number: (old_places[number] > place, -number))
    grown = {}
    for name in new.state_dict():
        if matched := _BLOCK.match(name):
            place = int(matched[1])
            source, is_new = _BLOCK.sub(f"blocks.{sources[place]}.", name), place not in places
            is_zero = is_new and OUTPUT.search(name) is not None
            grown[name] = Grown(source, is_new=is_new, is_zero=is_zero)
        else:
            grown[name] = Grown(name)
    return grown


def _blocks(model: LanguageModel) -> dict[int, dict[str, Size]]:
    """The shapes of each block's tensors by their names in it."""
    blocks: dict[int, dict[str, Size]] = {number: {} for number in range(len(model.blocks))}
    for name, tensor in model.state_dict().items():
        if matched := _BLOCK.match(name):
            blocks[int(matched[1])][name[matched.end() :]] = tensor.shape
    return blocks


def at_places(new: LanguageModel, sources: Mapping[int, int]) -> dict[str, Grown]:
    """The new model with an old block at each place, with the optimizer's state."""
    return {
        name: Grown(_BLOCK.sub(lambda matched: f"blocks.{sources[int(matched[1])]}.", name))
        for name in new.state_dict()
    }


def over_again(old: LanguageModel, new: LanguageModel) -> dict[str, Grown]:
    """The new model with the old blocks over and over, with the optimizer's state."""
    count = len(old.blocks)
    return at_places(new, {place: place % count for place in range(len(new.blocks))})


def matches(old: LanguageModel, number: int, new: LanguageModel, place: int) -> bool:
    """Whether an old block can stand at a place of the new model."""
    return _blocks(old)[number] == _blocks(new)[place]
