"""The singular values of every matrix in three numbers: norm, effective rank (Roy & Vetterli 2007)
and stable rank.

`spectral_norm` is the largest. `effective_rank` is the exponential of the entropy of the singular
values taken as shares: n for the identity, 1 for a matrix of rank one. `stable_rank` (Rudelson &
Vershynin 2007) is their sum of squares over the largest squared. A matrix of zeros has none of the
three: all are 0.
"""

from collections.abc import Iterator

import torch
from torch import Tensor

from lmlab.core.params import Params
from lmlab.evaluation.probes.base import Batch, Probe, Reading, Snapshot


class Options(Params):
    """This probe has none."""


class Spectra(Probe):
    """Of all parameters with two dimensions or more, those after the first taken together (a
    convolution's, say).
    """

    def __init__(self, options: Options) -> None:
        super().__init__()

    def look(self, snapshot: Snapshot, batch: Batch) -> Iterator[Reading]:
        for where, weight in snapshot.weights.items():
            if weight.ndim >= 2:
                values = torch.linalg.svdvals(weight.flatten(1).double())
                yield Reading("spectral_norm", where, float(values.max()))
                yield Reading("effective_rank", where, effective_rank(values))
                yield Reading("stable_rank", where, stable_rank(values))


def effective_rank(values: Tensor) -> float:
    """Of the matrix with these singular values."""
    shares = values / values.sum()
    return float(torch.special.entr(shares).sum().exp()) if values.any() else 0.0


def stable_rank(values: Tensor) -> float:
    """Of the matrix with these singular values."""
    return float((values / values.max()).square().sum()) if values.any() else 0.0
