"""Rows of new tokens as a model from scratch has them: the control for all other ways."""

from lmlab.core.params import Params
from lmlab.training.migrations.base import Migration


class Options(Params):
    """This part has none."""


class Random(Migration):
    """row(t) as drawn."""

    def __init__(self, options: Options) -> None:
        pass
