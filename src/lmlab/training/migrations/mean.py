"""The mean of all old rows (Hewitt 2021, "Initializing new word embeddings for pretrained language
models").

With the mean of n rows in the output head, m new tokens take at most a share m / (n + m) of the
probability at any position, so the old tokens lose at most log(1 + m/n) nats.
"""

from collections.abc import Sequence

from lmlab.core.params import Params
from lmlab.training.migrations.base import Migration


class Options(Params):
    """This part has none."""


class Mean(Migration):
    """row(t) = mean of the rows of all old tokens that the text has."""

    def __init__(self, options: Options) -> None:
        pass

    def input_sources(self, spelling: Sequence[int], used: Sequence[int]) -> Sequence[int]:
        return used

    def output_sources(self, spelling: Sequence[int], used: Sequence[int]) -> Sequence[int]:
        return used
