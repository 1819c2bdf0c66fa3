"""Every number of the stream several times (Chen et al. 2016, "Net2Net"; Shen et al. 2022, "Staged
training for transformer language models").

With x' = [x, x] maps read half from either copy; heads double and keep their width, and norms see
the same mean square. Copies have the same gradient for ever, so their halves are made unequal by
random numbers that cancel where copies are equal.
"""

from collections.abc import Mapping

from pydantic import Field
from torch import Tensor

from lmlab.core.errors import UserError
from lmlab.core.params import Params
from lmlab.model.models.base import LanguageModel
from lmlab.training.growths._shapes import Growing, grown, over_again
from lmlab.training.growths.base import Axis, Grown, Growth, copies


class Options(Params):
    """Options of the growth."""

    difference: float = Field(ge=0)


class Duplicated(Growth):
    """W' = [[W, W], [W, W]] / 2 + [N, -N], with N as drawn times `difference`."""

    keys = ("width", "heads", "groups")

    def __init__(self, options: Options) -> None:
        self.difference = options.difference

    def tensors(self, old: LanguageModel, new: LanguageModel) -> dict[str, Grown]:
        if new.width % old.width:
            raise UserError(
                f"params.yaml: start.growth: duplicated makes the width a multiple, and {new.width}"
                f" is none of {old.width}"
            )
        _check_heads(old, new)
        return grown(old, new, _axis)

    def finish(
        self,
        tensors: Mapping[str, Grown],
        weights: dict[str, Tensor],
        drawn: Mapping[str, Tensor],
    ) -> None:
        for name, tensor in tensors.items():
            for number, axis in tensor.axes.items():
                if axis.share is not None:
                    noise = _without_mean(drawn[name], number, axis.sources)
                    weights[name] = weights[name] + self.difference * noise


def _check_heads(old: LanguageModel, new: LanguageModel) -> None:
    """Raise UserError where heads would become wider, and not more."""
    for name, module in new.named_modules():
        if not hasattr(module, "heads"):
            continue
        before, width = (
            model.width // getattr(model.get_submodule(name), "heads", 1) for model in (old, new)
        )
        if width != before:
            raise UserError(
                f"params.yaml: start.growth: duplicated gives a model more heads, and they would be"
                f" {width} wide where they were {before}; set their number (heads, in"
                " layers.attention), by which the width is divided"
            )


def _axis(growing: Growing) -> Axis:
    sources = growing.sources(over_again)
    if growing.is_input:
        return Axis(sources, share=1 / copies(sources))
    return Axis(sources, gradient=1 / copies(sources))


def _without_mean(drawn: Tensor, number: int, sources: Tensor) -> Tensor:
    """The tensor less its mean over the places of each source along an axis."""
    shape = list(drawn.shape)
    shape[number] = int(sources.max()) + 1
    sums = drawn.new_zeros(shape).index_add(number, sources, drawn)
    by_place = [1] * drawn.ndim
    by_place[number] = -1
    counts = copies(sources).to(drawn.dtype).reshape(by_place)
    return drawn - sums.index_select(number, sources) / counts
