"""The singular values of every matrix: norm, effective rank (Roy & Vetterli 2007) and stable rank.

With singular values s and shares p = s / Σs: `spectral_norm` is max s, `effective_rank` is
exp(-Σ p ln p), n for the identity of n rows and 1 for a matrix of rank one, and `stable_rank`
(Rudelson & Vershynin 2007) is Σs² / max s². A matrix of zeros has none of the three: all are 0.
"""

from collections.abc import Iterator

import torch
from torch import Tensor

from lmlab.core.params import Params
from lmlab.evaluation.probes.base import Batch, Probe, Reading, Snapshot


class Options(Params):
    """This probe has none."""


class Spectra(Probe):
    """The spectra of all parameters with at least two dimensions.

    All dimensions after the first are taken as one, as for a convolution.
    """

    reading = (
        "Singular values of each weight matrix: the effective rank is usually close to the"
        " matrix's smaller side; the stable rank is about half of that at first and falls as a few"
        " directions take over. A spectral norm that keeps growing warns of instability."
    )

    def __init__(self, options: Options) -> None:
        super().__init__()

    def look(self, snapshot: Snapshot, batch: Batch) -> Iterator[Reading]:
        for where, weight in snapshot.weights.items():
            if weight.ndim >= 2:
                singular_values = torch.linalg.svdvals(weight.flatten(1).double())
                yield Reading("spectral_norm", where, float(singular_values.max()))
                yield Reading("effective_rank", where, effective_rank(singular_values))
                yield Reading("stable_rank", where, stable_rank(singular_values))


def effective_rank(singular_values: Tensor) -> float:
    """The exponential of the entropy of the singular values as shares; 0 if all are 0."""
    shares = singular_values / singular_values.sum()
    return float(torch.special.entr(shares).sum().exp()) if singular_values.any() else 0.0


def stable_rank(singular_values: Tensor) -> float:
    """The sum of squared singular values over the largest squared; 0 if all are 0."""
    relative = singular_values / singular_values.max()
    return float(relative.square().sum()) if singular_values.any() else 0.0
