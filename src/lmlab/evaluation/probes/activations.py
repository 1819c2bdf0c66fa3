"""What flows through the blocks: size, outliers (Bondarenko et al. 2023), dead and saturated units
(Glorot & Bengio 2010).

Of the stream behind each block: `root_mean_square`, and `kurtosis` (3 for a normal distribution;
large where a few numbers stand out, which makes a model hard to quantise). Of what goes into every
linear map that writes to the stream (the hidden units of a feed-forward layer, say): `dead`, the
share of units that no token of the probe batch wakes. Of the outputs of tanh and sigmoid:
`saturated`, the share that is as good as at a limit, where gradients vanish.
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
"""Of each squashing function, by the name that torch gives it."""


class Options(Params):
    """Options of the probe."""

    dead_below: float = Field(ge=0)
    saturated_within: float = Field(gt=0, lt=0.5)


class Activations(Probe):
    """A unit is dead if it never leaves zero by more than `dead_below` times its layer's root mean
    square.
    """

    def __init__(self, options: Options) -> None:
        super().__init__()
        self.options = options

    def look(self, snapshot: Snapshot, batch: Batch) -> Iterator[Reading]:
        squashed, outputs, saturated = _Squashed(self.options.saturated_within), [], {}
        with torch.no_grad(), squashed, inputs_of_writers(snapshot.model.blocks) as written:
            for number, x_BTD in enumerate(streams(snapshot.model, batch.tokens)):
                outputs.append(x_BTD)
                if squashed.count:
                    saturated[module_name(number)] = squashed.at_a_limit / squashed.count
                    squashed.count = squashed.at_a_limit = 0
        for number, x_BTD in enumerate(outputs):
            yield Reading(
                "root_mean_square",
                module_name(number),
                float(x_BTD.double().square().mean().sqrt()),
            )
            yield Reading("kurtosis", module_name(number), kurtosis(x_BTD))
        for where, share in saturated.items():
            yield Reading("saturated", where, share)
        for where, hidden_NH in written.items():
            yield Reading("dead", where, dead_share(hidden_NH, self.options.dead_below))


def kurtosis(x: Tensor) -> float:
    """The fourth moment about the mean over the squared variance, of all entries together; 0 if
    they are all the same.
    """
    away = x.double() - x.double().mean()
    variance = away.square().mean()
    return float(away.pow(4).mean() / variance.square()) if variance else 0.0


def dead_share(hidden_NH: Tensor, below: float) -> float:
    """The share of columns that are nowhere larger than `below` times the root mean square of all
    entries.
    """
    size = hidden_NH.double().square().mean().sqrt()
    return float((hidden_NH.abs().amax(dim=0) <= below * size).double().mean())


@contextmanager
def inputs_of_writers(blocks: nn.ModuleList) -> Iterator[dict[str, Tensor]]:
    """What goes into the linear maps named `out`, which write to the stream; filled as the model
    runs, shape (N, H).
    """
    seen: dict[str, Tensor] = {}

    def kept(where: str) -> Callable[[nn.Module, tuple[Tensor, ...]], None]:
        return lambda module, inputs: seen.update({where: inputs[0].flatten(0, -2)})

    with ExitStack() as hooks:
        for number, block in enumerate(blocks):
            for path, module in modules_named(block, "out"):
                where = module_name(number, path)
                hooks.callback(module.register_forward_pre_hook(kept(where)).remove)
        yield seen


class _Squashed(TorchFunctionMode):
    """Counts the outputs of squashing functions, and those of them that are nearly at a limit."""

    def __init__(self, within: float) -> None:
        super().__init__()
        self.within, self.count, self.at_a_limit = within, 0, 0

    def __torch_function__(
        self,
        function: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        output = function(*args, **(kwargs or {}))
        if limits := LIMITS.get(getattr(function, "__name__", "")):
            low, high = limits
            margin = self.within * (high - low)
            self.count += output.numel()
            self.at_a_limit += int(((output < low + margin) | (output > high - margin)).sum())
        return output
