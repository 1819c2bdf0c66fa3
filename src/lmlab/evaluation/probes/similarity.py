"""How similar a block's outputs stay while it learns: debiased CKA (Kornblith et al. 2019).

Linear centred kernel alignment of two sets of vectors for the same tokens, with HSIC the
Hilbert-Schmidt independence criterion of their inner products K and L, is
HSIC(K, L) / √(HSIC(K, K) HSIC(L, L)): 1 if one set is the other rotated and scaled. With few tokens
for each dimension the usual estimate is far above 0 even for independent sets; this one is not
(Song et al. 2012; Murphy et al. 2024).
"""

from collections.abc import Iterator

import torch
from pydantic import Field
from torch import Tensor

from lmlab.core.params import Params
from lmlab.evaluation.probes.base import Batch, Probe, Reading, Snapshot, block_outputs


class Options(Params):
    """Options of the probe."""

    most_tokens: int = Field(ge=4)


class Similarity(Probe):
    """CKA of each block's output with that in the first snapshot and in the previous one.

    The measures are `to_first` and `to_previous`; the first snapshot has only the former. At most
    `most_tokens` tokens of the probe batch are used, evenly spaced.
    """

    reading = (
        "Similarity (CKA) of a block's output with the first and the previous snapshot: 1 is the"
        " same up to rotation and scale, about 0 unrelated. To the previous snapshot it usually"
        " nears 1 as learning slows, to the first it falls."
    )
    remembers = True

    def __init__(self, options: Options) -> None:
        super().__init__()
        self.most_tokens = options.most_tokens
        self.first: dict[str, Tensor] = {}
        self.previous: dict[str, Tensor] = {}

    def look(self, snapshot: Snapshot, batch: Batch) -> Iterator[Reading]:
        with torch.no_grad():
            outputs = block_outputs(snapshot.model, batch.tokens)
        every = -(-batch.tokens.numel() // self.most_tokens)
        now = {block: s_BTS.flatten(0, 1)[::every].double() for block, s_BTS in outputs.items()}
        if not self.first:
            self.first = now
        for measure, earlier in (("to_first", self.first), ("to_previous", self.previous)):
            for block in earlier:
                yield Reading(measure, block, alignment(earlier[block], now[block]))
        self.previous = now


def alignment(x_ND: Tensor, y_NE: Tensor) -> float:
    """Debiased linear CKA of two sets of N >= 4 vectors; 0 if one of them does not vary."""
    x_products, y_products = _inner_products(x_ND), _inner_products(y_NE)
    xx = independence(x_products, x_products)
    xy = independence(x_products, y_products)
    yy = independence(y_products, y_products)
    return xy / (xx * yy) ** 0.5 if xx > 0 and yy > 0 else 0.0


def _inner_products(x_ND: Tensor) -> Tensor:
    """Inner products between different vectors, with 0 on the diagonal.

    The vectors are centred first: that does not change the estimate, only its rounding.
    """
    x_ND = x_ND - x_ND.mean(dim=0)
    return (x_ND @ x_ND.T).fill_diagonal_(0.0)


def independence(k_NN: Tensor, l_NN: Tensor) -> float:
    """The unbiased HSIC of inner products without diagonal (Song et al. 2012, equation 5)."""
    n = len(k_NN)
    sums_k, sums_l = k_NN.sum(dim=0), l_NN.sum(dim=0)
    both = sums_k.sum() * sums_l.sum() / ((n - 1) * (n - 2))
    total = (k_NN * l_NN).sum() + both - 2 / (n - 2) * (sums_k @ sums_l)
    return float(total) / (n * (n - 3))
