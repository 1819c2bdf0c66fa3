"""Every expert several times, and as many times as many at work on each token (copies, as in
Komatsuzaki et al. 2023, "Sparse upcycling").

The router's shares divide among copies, and what these give adds up to what it was. Copies would
stay alike for ever, so their outputs are made unequal by random numbers that cancel.
"""

import re
from collections.abc import Mapping

import torch
from pydantic import Field
from torch import Tensor

from lmlab.core.params import Params
from lmlab.model.models.base import LanguageModel
from lmlab.training.growths._shapes import Growing, growing, over_again
from lmlab.training.growths.base import Axis, Grown, Growth, copies

_EXPERT = re.compile(r"\.experts\.(\d+)\.")


class Options(Params):
    """Options of the growth."""

    difference: float = Field(ge=0)


class Experts(Growth):
    """expert'_e = expert_{e mod E} + N_e, with N_e that sum to 0 over the copies of an expert."""

    keys = ("experts", "active")

    def __init__(self, options: Options) -> None:
        self.difference = options.difference

    def tensors(self, old: LanguageModel, new: LanguageModel) -> dict[str, Grown]:
        tensors = {
            name: Grown(name, {each.number: _axis(each) for each in axes})
            for name, axes in growing(old, new)
        }
        before, after = _count(old), _count(new)
        for name in new.state_dict():
            if found := _EXPERT.search(name):
                source = _EXPERT.sub(f".experts.{int(found[1]) % before}.", name)
                tensors[name] = Grown(source, gradient_share=before / after)
        return tensors

    def finish(
        self,
        tensors: Mapping[str, Grown],
        weights: dict[str, Tensor],
        drawn: Mapping[str, Tensor],
    ) -> None:
        copies_of: dict[str, list[str]] = {}
        for name, grown in tensors.items():
            if _EXPERT.search(name) and name.endswith(".out.weight"):
                copies_of.setdefault(grown.source, []).append(name)
        for names in copies_of.values():
            mean = torch.stack([drawn[name] for name in names]).mean(0)
            for name in names:
                weights[name] = weights[name] + self.difference * (drawn[name] - mean)


def _count(model: LanguageModel) -> int:
    """The experts in a layer."""
    numbers = [int(found[1]) for found in map(_EXPERT.search, model.state_dict()) if found]
    return 1 + max(numbers, default=0)


def _axis(growing: Growing) -> Axis:
    sources = growing.sources(over_again)
    return Axis(sources, gradient=1 / copies(sources))
