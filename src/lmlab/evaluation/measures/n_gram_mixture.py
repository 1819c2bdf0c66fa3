"""The model mixed with an n-gram: bits per byte when each predictor has half the weight.

p(token) = p_model(token) / 2 + p_n-gram(token) / 2, with a Kneser-Ney n-gram. Predictors that err
in different places do better together than the better of them alone; `saved` says by how much. It
is negative where one of them knows nothing that the other lacks, but never below minus one bit a
token, since half of each probability remains.
"""

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from lmlab.core.params import Params
from lmlab.evaluation.kneser_ney import KneserNey
from lmlab.evaluation.measures.base import FROM_SCORES, Measure, Numbers, Trained
from lmlab.model.scoring import bits_per_byte

Floats = NDArray[np.float64]


class Options(Params):
    """Options of the measure."""

    order: int = Field(ge=1, le=12)
    megatokens: float = Field(gt=0)


class NGramMixture(Measure):
    """`bits_per_byte` of the mixture on each split, and how much is `saved` on the better of both.

    The n-gram's order is in tokens, so with another tokenizer it is another n-gram.
    """

    less_is_better = ("*.bits_per_byte",)
    decided_by = FROM_SCORES

    def __init__(self, options: Options) -> None:
        super().__init__()
        self.options = options

    def measure(self, trained: Trained) -> Numbers:
        fitted_to = trained.train[: max(1, int(self.options.megatokens * 1e6))]
        n_gram = KneserNey(fitted_to, trained.shards.vocabulary_size, self.options.order)
        numbers = {}
        for split, scored in trained.scores.items():
            size = trained.shards.count(split, "bytes")
            is_scored = ~np.isnan(scored.nats_by_target)
            model_nats = scored.nats_by_target[is_scored]
            n_gram_nats = n_gram.nats(trained.shards.stream(split))[1:][is_scored]
            mixture_nats = half_of_each(model_nats, n_gram_nats)
            mixture = bits_per_byte(float(mixture_nats.sum()), size)
            model_alone = bits_per_byte(scored.nats, size)
            n_gram_alone = bits_per_byte(float(n_gram_nats.sum()), size)
            saved = min(model_alone, n_gram_alone) - mixture
            numbers[split] = {"bits_per_byte": mixture, "saved": saved}
        return numbers


def half_of_each(model_nats: Floats, n_gram_nats: Floats) -> Floats:
    """Nats of each token under the mixture of two predictors, half the weight for each."""
    return np.log(2) - np.logaddexp(-model_nats, -n_gram_nats)
