"""The gradient noise scale: the batch size beyond which more helps little (McCandlish et al. 2018).

The gradient of one window is the true gradient G plus noise with covariance S, so the mean over n
windows has squared length |G|² + tr(S) / n in expectation. Both terms are estimated without bias
from the probe batch; scale = tr(S) / |G|², in windows.
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
    """`noise` is tr(S), `signal` is |G|² and `scale` is their ratio.

    `scale` is left out where too few windows make the estimate of `signal` negative.
    """

    reading = (
        "Noise of a single window's gradient over the signal, in windows (scale): a batch much"
        " smaller than this is mostly noise, a much larger one gains little. It is usually about 1"
        " at the start and hundreds later, known only roughly from a few windows."
    )

    def __init__(self, options: Options) -> None:
        super().__init__()

    def look(self, snapshot: Snapshot, batch: Batch) -> Iterator[Reading]:
        if len(batch.tokens) < 2:
            raise UserError(
                "params.yaml: probe.probes: gradient_noise_scale compares windows, and the"
                " validation split has only one;"
                " raise download.validation, lower train.context or leave it out"
            )
        noise, signal = noise_and_signal(_gradients_of_windows(snapshot, batch))
        yield Reading("noise", "all", noise)
        yield Reading("signal", "all", signal)
        if signal > 0:
            yield Reading("scale", "all", noise / signal)


def _gradients_of_windows(snapshot: Snapshot, batch: Batch) -> Iterator[Tensor]:
    """The true gradient of each window of the batch by itself."""
    for tokens_T, targets_T in zip(*batch, strict=True):
        window = Batch(tokens_T[None], targets_T[None])
        yield flat(snapshot.true_gradient(window))


def noise_and_signal(gradients: Iterable[Tensor]) -> tuple[float, float]:
    """Unbiased estimates of tr(S) and |G|² from two or more independent gradients."""
    count, total, squares = 0, torch.zeros(()), torch.zeros(())
    for gradient in gradients:
        count += 1
        total = total + gradient
        squares = squares + gradient @ gradient
    mean = total / count
    noise = (squares - count * (mean @ mean)) / (count - 1)
    return float(noise), float(mean @ mean - noise / count)
