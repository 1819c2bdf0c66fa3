"""The mean of the old tokens that spell the new one (Gee et al. 2022, "Fast vocabulary transfer for
language model compression").
"""

from collections.abc import Sequence

from lmlab.core.params import Params
from lmlab.training.migrations.base import Migration


class Options(Params):
    """This part has none."""


class Spelled(Migration):
    """row(t) = mean over s in spelling(t) of row(s), at both ends."""

    def __init__(self, options: Options) -> None:
        pass

    def input_sources(self, spelling: Sequence[int], used: Sequence[int]) -> Sequence[int]:
        return spelling

    def output_sources(self, spelling: Sequence[int], used: Sequence[int]) -> Sequence[int]:
        return spelling
