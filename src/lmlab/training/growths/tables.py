"""Larger tables of n-grams, and tables of longer ones (Roy et al. 2022, "N-Grammer").

With a multiple of the buckets each row is where its n-grams' hash now leads, so n-grams that shared
a row begin alike and part. Longer n-grams begin at zero.
"""

import torch

from lmlab.core.params import Params
from lmlab.model.layers.n_gram_tables import NGramTables
from lmlab.model.models.base import LanguageModel
from lmlab.training.growths.base import NEW, Axis, Grown, Growth, copies


class Options(Params):
    """This part has none."""


class Tables(Growth):
    """table'[hash mod B'] = table[hash mod B]; table' = 0 for n-grams longer than before."""

    keys = ("buckets", "longest", "order")

    def __init__(self, options: Options) -> None:
        pass

    def tensors(self, old: LanguageModel, new: LanguageModel) -> dict[str, Grown]:
        tensors = {name: Grown(name) for name in new.state_dict()}
        for prefix, layer in new.named_modules():
            if isinstance(layer, NGramTables):
                before = old.get_submodule(prefix)
                assert isinstance(before, NGramTables)
                tensors |= _of_layer(f"{prefix}.", before, layer)
        return tensors


def _of_layer(prefix: str, old: NGramTables, new: NGramTables) -> dict[str, Grown]:
    tensors = {}
    for number in range(len(new.tables)):
        name = f"{prefix}tables.{number}.weight"
        if number >= len(old.tables):
            tensors[name] = Grown(f"{prefix}tables.0.weight", is_zero=True, is_new=True)
            continue
        before, after = old.row_count(number), new.row_count(number)
        if after > before:
            sources = new.rows_among(torch.arange(after, device="cpu"), after, before)
            tensors[name] = Grown(name, {0: Axis(sources, gradient=1 / copies(sources))})
    widen = getattr(new, "widen", None)
    if widen is not None and len(new.tables) > len(old.tables):
        columns = torch.arange(widen.in_features, device="cpu")
        known = widen.in_features * len(old.tables) // len(new.tables)
        sources = torch.where(columns < known, columns, NEW)
        tensors[f"{prefix}widen.weight"] = Grown(f"{prefix}widen.weight", {1: Axis(sources)})
    return tensors
