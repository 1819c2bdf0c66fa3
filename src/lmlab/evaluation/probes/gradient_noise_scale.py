"""The gradient noise scale (McCandlish et al. 2018): how many windows a batch needs before more of
them help little.

The gradient of one window is the true one plus noise, so the mean of n of them has squared length
|G|² + tr(S) / n in expectation. From the probe batch both are estimated without bias; their
quotient tr(S) / |G|² is the scale, in windows.
"""

from collections.abc import Iterable, Iterator

import torch
from torch import Tensor

from lmlab.core.errors import UserError
from lmlab.core.params import Params
from lmlab.evaluation.probes.base import Batch, Probe, Reading, Snapshot, flat


class Options(Params):
    """This probe has none."""


class GradientNoiseScale(Probe):
    """`noise` is tr(S), `signal` is |G|², `scale` their quotient, left out where too few windows
    make `signal` negative.
    """

    def __init__(self, options: Options) -> None:
        super().__init__()

    def look(self, snapshot: Snapshot, batch: Batch) -> Iterator[Reading]:
        windows = zip(*(of_batch[:, None] for of_batch in batch), strict=True)
        if len(batch.tokens) < 2:
            raise UserError(
                "params.yaml: probe.probes: gradient_noise_scale compares windows, and the"
                " validation split has only one;"
                " raise download.validation, lower train.context or leave it out"
            )
        noise, signal = noise_and_signal(
            flat(snapshot.true_gradient(Batch(*window))) for window in windows
        )
        yield Reading("noise", "all", noise)
        yield Reading("signal", "all", signal)
        if signal > 0:
            yield Reading("scale", "all", noise / signal)


def noise_and_signal(gradients: Iterable[Tensor]) -> tuple[float, float]:
    """Estimates of tr(S) and of |G|² from two or more independent gradients, both without bias."""
    count, total, squares = 0, torch.zeros(()), torch.zeros(())
    for gradient in gradients:
        count, total, squares = count + 1, total + gradient, squares + gradient @ gradient
    mean = total / count
    noise = (squares - count * (mean @ mean)) / (count - 1)
    return float(noise), float(mean @ mean - noise / count)
