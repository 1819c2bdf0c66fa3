"""Which axes of which tensors grow between two models of the same parts, and in which sections."""

from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch
from torch import Tensor, nn

from lmlab.model.models.base import LanguageModel
from lmlab.training.growths.base import Axis, Grown


class Growing(NamedTuple):
    """An axis of a tensor that is longer in the larger model."""

    number: int
    is_input: bool
    """Whether what it goes by is added up: the columns of a map, and not its rows."""
    before: tuple[int, ...]
    """The sizes of its sections in the smaller model, in the order of its places."""
    after: tuple[int, ...]

    def sources(self, of_section: Callable[[int, int], Tensor]) -> Tensor:
        """The old place of each new one, from what a function says of a section's sizes."""
        pieces, start = [], 0
        for before, after in zip(self.before, self.after, strict=True):
            within = of_section(before, after)
            pieces.append(torch.where(within < 0, within, within + start))
            start += before
        return torch.cat(pieces)


def growing(old: LanguageModel, new: LanguageModel) -> Iterator[tuple[str, list[Growing]]]:
    """Each tensor that both models have, with the axes along which it grows."""
    before, after = old.state_dict(), new.state_dict()
    for name in before.keys() & after.keys():
        axes = []
        sizes = zip(before[name].shape, after[name].shape, strict=True)
        for number, (size, larger) in enumerate(sizes):
            if size != larger:
                sections = [_sections(model, name, number) for model in (old, new)]
                axes.append(
                    Growing(
                        number,
                        _is_input(new, name, number),
                        sections[0] or (size,),
                        sections[1] or (larger,),
                    )
                )
        yield name, axes


def grown(
    old: LanguageModel, new: LanguageModel, axis: Callable[[Growing], Axis]
) -> dict[str, Grown]:
    """Every tensor of the new model, each axis that grows as a function says."""
    return {
        name: Grown(name, {each.number: axis(each) for each in axes})
        for name, axes in growing(old, new)
    }


def over_again(before: int, after: int) -> Tensor:
    """The old places of a section over and over, shape (after,)."""
    return torch.arange(after, device="cpu") % before


def _sections(model: LanguageModel, name: str, number: int) -> tuple[int, ...]:
    """The sizes that a module declares; empty where it declares none."""
    owner, _, own = name.rpartition(".")
    module = model.get_submodule(owner)
    if isinstance(module, nn.Linear | nn.Conv1d):  # declared by the module that holds the map
        owner, _, own = owner.rpartition(".")
        module = model.get_submodule(owner)
    declared = getattr(module, "input_sections" if number else "sections", {})
    sections: tuple[int, ...] = declared.get(own, ())
    return sections


def _is_input(model: LanguageModel, name: str, number: int) -> bool:
    owner, _, own = name.rpartition(".")
    module = model.get_submodule(owner)
    is_declared = own in getattr(module, "input_sections", {})
    return number == 1 and (isinstance(module, nn.Linear | nn.Conv1d) or is_declared)
