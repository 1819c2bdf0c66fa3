"""The input is what the old embedding gave at the last token of the spelling, n-grams included.

The old model read the new token as several of its own, and predicted what follows at the last one,
whose vector knew those before it by their n-grams (Roy et al. 2022, "N-Grammer"). The output head
has the mean of the spelling's rows (Gee et al. 2022, "Fast vocabulary transfer for language model
compression"). Without an embedding of n-grams the input is the last token's row alone.
"""

from collections.abc import Sequence

from lmlab.core.params import Params
from lmlab.training.migrations.base import Migration


class Options(Params):
    """This part has none."""


class SpelledNGram(Migration):
    """input(t) = row(s_k) + sum over n ≤ k of the vector of (s_k-n+1 … s_k), t = s_1 … s_k."""

    adds_inner_n_grams = True

    def __init__(self, options: Options) -> None:
        pass

    def input_sources(self, spelling: Sequence[int], used: Sequence[int]) -> Sequence[int]:
        return spelling[-1:]

    def output_sources(self, spelling: Sequence[int], used: Sequence[int]) -> Sequence[int]:
        return spelling
