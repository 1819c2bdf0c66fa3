"""How alike what a block computes stays while it learns: centred kernel alignment (Kornblith et al.
2019), debiased.

Linear CKA of two sets of vectors for the same tokens is 1 when one is the other turned and scaled.
The usual estimate is far above 0 even for independent sets when there are few tokens for each
dimension; this one is not (Song et al. 2012; Murphy et al. 2024).
"""

from collections.abc import Iterator

import torch
from pydantic import Field
from torch import Tensor

from lmlab.core.params import Params
from lmlab.evaluation.probes.base import Batch, Probe, Reading, Snapshot, module_name, streams


class Options(Params):
    """Options of the probe."""

    most_tokens: int = Field(ge=4)


class Similarity(Probe):
    """Of each block's output with that in the first snapshot (`to_first`) and in the one before
    this (`to_previous`).
    """

    def __init__(self, options: Options) -> None:
        super().__init__()
        self.most = options.most_tokens
        self.first: list[Tensor] = []
        self.previous: list[Tensor] = []

    def look(self, snapshot: Snapshot, batch: Batch) -> Iterator[Reading]:
        with torch.no_grad():
            flattened = [x_BTD.flatten(0, 1) for x_BTD in streams(snapshot.model, batch.tokens)]
        every = -(-len(flattened[0]) // self.most)
        now = [x_ND[::every].double() for x_ND in flattened]
        self.first = self.first or now
        for measure, then in (("to_first", self.first), ("to_previous", self.previous)):
            for number, (one_ND, other_ND) in enumerate(zip(then, now)):
                yield Reading(measure, module_name(number), alignment(one_ND, other_ND))
        self.previous = now


def alignment(x_ND: Tensor, y_NE: Tensor) -> float:
    """Debiased linear CKA of two sets of N vectors, N at least 4; 0 where one of them does not
    vary.
    """
    grams = [_products(x_ND), _products(y_NE)]
    (xx, xy), (_, yy) = [[independence(one, other) for other in grams] for one in grams]
    return xy / (xx * yy) ** 0.5 if xx > 0 and yy > 0 else 0.0


def _products(x_ND: Tensor) -> Tensor:
    """Inner products between different vectors, 0 on the diagonal; centred first, which the
    estimate does not see.
    """
    x_ND = x_ND - x_ND.mean(dim=0)
    return (x_ND @ x_ND.T).fill_diagonal_(0.0)


def independence(k_NN: Tensor, l_NN: Tensor) -> float:
    """The Hilbert-Schmidt independence criterion from products without diagonal, unbiased (Song et
    al. 2012, equation 5).
    """
    n = len(k_NN)
    sums_k, sums_l = k_NN.sum(dim=0), l_NN.sum(dim=0)
    both = sums_k.sum() * sums_l.sum() / ((n - 1) * (n - 2))
    total = (k_NN * l_NN).sum() + both - 2 / (n - 2) * (sums_k @ sums_l)
    return float(total) / (n * (n - 3))
