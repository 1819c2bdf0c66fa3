"""What flows through the blocks: scale, outliers, dead and saturated units.

After Bondarenko et al. 2023 (outliers) and Glorot & Bengio 2010 (saturation).

Of each block's output: `root_mean_square`, and `kurtosis` = E[(x - μ)⁴] / σ⁴, which is 3 for a
normal distribution and large where a few numbers stand out (such a model is hard to quantise). Of
the input of every linear map that writes to the residual stream (the hidden units of a feed-forward
layer, say): `dead`, the share of units that no token of the probe batch activates. Of the outputs
of tanh and sigmoid: `saturated`, the share close to a limit, where gradients vanish.
"""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from lmlab.core.params import Params
from lmlab.evaluation.probes.base import (
    Batch,
    Probe,
    Reading,
    Snapshot,
    module_name,
    modules_named,
    streams,
)

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
        saturation = _Saturation(self.options.saturated_within)
        outputs: list[Tensor] = []
        saturated: dict[str, float] = {}
        with torch.no_grad(), saturation, inputs_of_writers(snapshot.model.blocks) as hidden:
            for number, x_BTD in enumerate(streams(snapshot.model, batch.tokens)):
                outputs.append(x_BTD)
                if saturation.count:
                    saturated[module_name(number)] = saturation.pop_share()
        for number, x_BTD in enumerate(outputs):
            root_mean_square = float(x_BTD.double().square().mean().sqrt())
            yield Reading("root_mean_square", module_name(number), root_mean_square)
            yield Reading("kurtosis", module_name(number), kurtosis(x_BTD))
        for where, share in saturated.items():
            yield Reading("saturated", where, share)
        for where, hidden_NH in hidden.items():
            yield Reading("dead", where, dead_share(hidden_NH, self.options.dead_below))


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


@contextmanager
def inputs_of_writers(blocks: nn.ModuleList) -> Iterator[dict[str, Tensor]]:
    """The inputs of the linear maps named `out`, which write to the stream, each of shape (N, H).

    The dict, by the map's place, is filled while the model runs.
    """
    inputs: dict[str, Tensor] = {}

    def keeper(where: str) -> Callable[[nn.Module, tuple[Tensor, ...]], None]:
        return lambda module, arguments: inputs.update({where: arguments[0].flatten(0, -2)})

    with ExitStack() as hooks:
        for number, block in enumerate(blocks):
            for path, module in modules_named(block, "out"):
                hook = module.register_forward_pre_hook(keeper(module_name(number, path)))
                hooks.callback(hook.remove)
        yield inputs


class _Saturation(TorchFunctionMode):
    """Counts the outputs of saturating functions, and those of them that are close to a limit."""

    def __init__(self, within: float) -> None:
        super().__init__()
        self.within, self.count, self.saturated = within, 0, 0

    def pop_share(self) -> float:
        """The share of saturated outputs since the last call, of which there must be one."""
        share = self.saturated / self.count
        self.count = self.saturated = 0
        return share

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
