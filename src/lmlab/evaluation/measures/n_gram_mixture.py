"""What the model and counting know together: bits per byte where each probability is half the one's
and half the other's.

Counting is the Kneser-Ney n-gram. Predictors that err in different places pay less together than
the better of them alone; `saved` says how much. Where one of them knows nothing that the other
lacks it is negative, but never below minus one bit a token, since half of a probability is left.
"""

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from lmlab.core.params import Params
from lmlab.evaluation.kneser_ney import KneserNey
from lmlab.evaluation.measures.base import SCORED, Measure, Numbers, Trained
from lmlab.model.scoring import bits_per_byte


class Options(Params):
    """Options of the measure."""

    order: int = Field(ge=1, le=12)
    megatokens: float = Field(gt=0)


def half_of_each(one: NDArray[np.float64], other: NDArray[np.float64]) -> NDArray[np.float64]:
    """Nats that each token costs where its probability is half the one predictor's and half the
    other's.
    """
    return np.log(2) - np.logaddexp(-one, -other)


class NGramMixture(Measure):
    """On each split, `bits_per_byte` and `saved`, by how much that is less than the better of the
    two.

    The n-gram's order is in tokens, so over another tokenizer it is another n-gram.
    """

    less_is_better = ("*.bits_per_byte",)
    decided_by = SCORED

    def __init__(self, options: Options) -> None:
        super().__init__()
        self.options = options

    def measure(self, trained: Trained) -> Numbers:
        counted = trained.train[: max(1, int(self.options.megatokens * 1e6))]
        ngram = KneserNey(counted, trained.shards.vocabulary_size, self.options.order)
        found: Numbers = {}
        for split, scored in trained.scores.items():
            size = trained.shards.count(split, "bytes")
            theirs = ngram.nats(trained.shards.stream(split))[1:]
            charged = ~np.isnan(scored.nats_by_target)
            both = half_of_each(scored.nats_by_target[charged], theirs[charged])
            together = bits_per_byte(float(both.sum()), size)
            alone = min(
                bits_per_byte(scored.nats, size), bits_per_byte(float(theirs[charged].sum()), size)
            )
            found[split] = {"bits_per_byte": together, "saved": alone - together}
        return found
