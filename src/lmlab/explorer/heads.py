"""What each attention head does as a rule: where it looks on ordinary text, and on repeated text.

(Heads that look one token back, and induction heads, which look at what came next the last time:
Elhage et al. 2021, Olsson et al. 2022. Weight on the first token as a place of rest: Xiao et al.
2023.)
"""

from collections.abc import Callable

import torch
from torch import Tensor

from lmlab.evaluation.probes.attention import attention_patterns, induction, random_tokens
from lmlab.explorer.subject import Subject
from lmlab.model import places
from lmlab.model.models.base import LanguageModel

SEQUENCES = 8
"""Of random tokens, each read twice over."""
WINDOWS = 8
"""Of text at most."""
Found = dict[str, list[float]]
"""A mean weight for each head, by what the weight is on."""


@torch.no_grad()
def roles(subject: Subject, moment: int, text: str) -> dict[str, Found]:
    """Of each place of attention weights: the mean weight that each head gives, on a text, to the
    token before (`previous`), to the one it reads (`itself`) and to the first of the window
    (`first`); and on random tokens read twice, in the second round, to the token that came next in
    the first (`induction`).
    """
    model = subject.at(moment)
    if not attention_patterns(model):
        return {}
    ids = torch.tensor(subject.ids(text))
    width = min(model.context, len(ids))
    rows = ids.unfold(0, width, width)[:WINDOWS]
    period = max(1, model.context // 2)
    once_BT = random_tokens(SEQUENCES, period, model.vocabulary_size, seed=0)
    twice_BT = once_BT.repeat(1, 2)
    found: dict[str, Found] = {}
    for name, of_heads, tokens_BT in (
        ("previous", _previous, rows),
        ("itself", lambda w: w.diagonal(dim1=-2, dim2=-1).mean(dim=(0, 2)), rows),
        ("first", lambda w: w[..., 1:, 0].mean(dim=(0, 2)), rows),
        ("induction", lambda w: induction(w, period), twice_BT),
    ):
        if tokens_BT.shape[1] < 2:
            continue  # there is no text
        for place, values in _by_place(model, tokens_BT, of_heads).items():
            found.setdefault(place, {})[name] = values
    return found


def _previous(weights_BHTS: Tensor) -> Tensor:
    return weights_BHTS.diagonal(offset=-1, dim1=-2, dim2=-1).mean(dim=(0, 2))


def _by_place(
    model: LanguageModel, tokens_BT: Tensor, of_heads: Callable[[Tensor], Tensor]
) -> dict[str, list[float]]:
    """What `of_heads` makes of the weights, shape (B, H, T, S), at each place."""
    with places.record(model, attention_patterns(model)) as patterns:
        model(tokens_BT)
    return {
        place: [float(f"{value:.4g}") for value in of_heads(weights_BHTS.double()).tolist()]
        for place, weights_BHTS in patterns.items()
    }
