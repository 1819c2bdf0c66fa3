"""On what text a unit, head or number of a state is most active."""

from typing import Any

import torch
from torch import Tensor

from lmlab.core.errors import UserError
from lmlab.explorer.subject import Subject
from lmlab.model import places
from lmlab.model.models.base import LanguageModel
from lmlab.model.scoring import windows

MOST_WINDOWS = 64
"""Of text that are read for it."""
AT_ONCE = 16
SHOWN = 6
AROUND = 24
"""Tokens of context that are shown before a place in the text."""


@torch.no_grad()
def texts_of(
    subject: Subject, moment: int, place: str, unit: int, text: str
) -> list[dict[str, Any]]:
    """The places in a text at which a part of a layer is most active, at most one in each window.

    Of each: its value, the tokens before it, and the one that is predicted there.
    """
    model = subject.at(moment)
    if place.endswith(".pattern"):
        raise UserError(f"{place}: attention weights are no activation; ask for head_outputs")
    ids = subject.ids(text)[: MOST_WINDOWS * model.context + 1]
    if len(ids) < 2:
        raise UserError("there is no text to look for it in")
    width = min(model.context, len(ids) - 1)
    starts = [window.start for window in windows(len(ids) - 1, width, width)]
    found: dict[int, float] = {}
    for first in range(0, len(starts), AT_ONCE):
        batch = starts[first : first + AT_ONCE]
        tokens_BT = torch.tensor([ids[start : start + width] for start in batch])
        value_BT = _values(model, tokens_BT, place, unit)
        for start, value_T in zip(batch, value_BT, strict=True):
            position = int(value_T.abs().argmax())
            found[start + position] = float(value_T[position])
    strongest = sorted(found, key=lambda at: -abs(found[at]))[:SHOWN]
    return [
        {
            "value": float(f"{found[at]:.6g}"),
            "before": subject.shown(ids[max(1, at + 1 - AROUND) : at + 1]),
            "next": subject.shown([ids[at + 1]])[0],
        }
        for at in strongest
    ]


def _values(model: LanguageModel, tokens_BT: Tensor, place: str, unit: int) -> Tensor:
    with places.record(model, [place]) as states:
        model(tokens_BT)
    state = states[place]
    if state.ndim < 3 or unit >= state.shape[2]:
        raise UserError(f"{place} has no part {unit}")
    values = state[:, :, unit]
    return values if values.ndim == 2 else values.flatten(2).norm(dim=-1)
