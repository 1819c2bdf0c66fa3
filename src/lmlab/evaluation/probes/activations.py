"""What flows through the blocks: scale, outliers, dead and saturated units.

After Bondarenko et al. 2023 (outliers) and Glorot & Bengio 2010 (saturation).

Of each block's output: `root_mean_square`, and `kurtosis` = E[(x - μ)⁴] / σ⁴, which is 3 for a
normal distribution and large where a few numbers stand out (such a model is hard to quantise). Of
every place from which a layer writes to the residual stream (the units of a feed-forward layer,
say): `dead`, the share of numbers that no token of the probe batch activates. Of the outputs of
tanh and sigmoid within a block: `saturated`, the share close to a limit, where gradients vanish.
"""

from collections.abc import Callable, Iterator
from typing import Any

import torch
from pydantic import Field
from torch import Tensor
from torch.overrides import TorchFunctionMode

from lmlab.core.params import Params
from lmlab.evaluation.probes.base import (
    Batch,
    Probe,
    Reading,
    Snapshot,
)
from lmlab.model import places

LIMITS = {"tanh": (-1.0, 1.0), "tanh_": (-1.0, 1.0), "sigmoid": (0.0, 1.0), "sigmoid_": (0.0, 1.0)}
"""The limits of each saturating function, by torch's name for it."""


class Options(Params):
    """Options of the probe."""

    dead_below: float = Field(ge=0)
    saturated_within: float = Field(gt=0, lt=0.5)


class Activations(Probe):
    """The scale and kurtosis of each block's output, and the shares of dead and saturated units.

    A unit is dead if it never exceeds `dead_below` times its layer's root mean square in size. An
    output is saturated within `saturated_within` of a limit, as a share of the range.
    """

    reading = (
        "Size and outliers of each block's output: once trained, a root mean square of about 1 to"
        " 10 and a kurtosis of 5 to 50 are usual (3 means no outliers). Shares of dead and"
        " saturated units should be near 0: such units hardly learn."
    )

    def __init__(self, options: Options) -> None:
        super().__init__()
        self.options = options

    def look(self, snapshot: Snapshot, batch: Batch) -> Iterator[Reading]:
        model = snapshot.model
        inside = [name for name in places.names(model) if name.startswith("blocks.")]
        with torch.no_grad(), places.record(model, inside) as states:
            model(batch.tokens)
        for number, block in enumerate(model.blocks):
            output_BTS = states[f"blocks.{number}.output"]
            root_mean_square = float(output_BTS.double().square().mean().sqrt())
            yield Reading("root_mean_square", f"blocks.{number}", root_mean_square)
            yield Reading("kurtosis", f"blocks.{number}", kurtosis(output_BTS))
            with torch.no_grad(), _Saturation(self.options.saturated_within) as saturation:
                block(states[f"blocks.{number}.input"])
            if saturation.count:
                yield Reading("saturated", f"blocks.{number}", saturation.share)
        for name, written in states.items():
            if name.rpartition(".")[2] in places.WRITTEN:
                dead = dead_share(written.flatten(0, 1).flatten(1), self.options.dead_below)
                yield Reading("dead", name, dead)


def kurtosis(x: Tensor) -> float:
    """The fourth central moment of all entries over their squared variance; 0 if all are equal."""
    deviation = x.double() - x.double().mean()
    variance = deviation.square().mean()
    return float(deviation.pow(4).mean() / variance.square()) if variance else 0.0


def dead_share(hidden_NH: Tensor, below: float) -> float:
    """The share of columns never above `below` times the root mean square of all entries."""
    root_mean_square = hidden_NH.double().square().mean().sqrt()
    largest_H = hidden_NH.abs().amax(dim=0)
    return float((largest_H <= below * root_mean_square).double().mean())


class _Saturation(TorchFunctionMode):
    """Counts the outputs of saturating functions, and those of them that are close to a limit."""

    def __init__(self, within: float) -> None:
        super().__init__()
        self.within, self.count, self.saturated = within, 0, 0

    @property
    def share(self) -> float:
        """The share of saturated outputs, of which there must be one."""
        return self.saturated / self.count

    def __torch_function__(
        self,
        function: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        output = function(*args, **(kwargs or {}))
        limits = LIMITS.get(getattr(function, "__name__", ""))
        if limits:
            low, high = limits
            margin = self.within * (high - low)
            saturated = (output < low + margin) | (output > high - margin)
            self.count += output.numel()
            self.saturated += int(saturated.sum())
        return output
