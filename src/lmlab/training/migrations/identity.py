"""No migration: the start's tokenizer stays, and so do all rows."""

from lmlab.core.params import Params
from lmlab.training.migrations.base import Migration


class Options(Params):
    """This part has none."""


class Identity(Migration):
    """For a run that goes on with the vocabulary that it has."""

    def __init__(self, options: Options) -> None:
        pass
