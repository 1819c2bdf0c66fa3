"""Generation one step at a time: the distribution, what is cut off, and the draw."""

from collections.abc import Sequence
from typing import Any

import torch

from lmlab.core.errors import UserError
from lmlab.explorer.changes import Change, applied, pinned
from lmlab.explorer.subject import Subject
from lmlab.model.truncation import Truncation

SHOWN = 40


@torch.no_grad()
def next_token(
    subject: Subject,
    moment: int,
    text: str,
    changes: Sequence[Change],
    temperature: float,
    truncation: Truncation,
    seed: int,
) -> dict[str, Any]:
    """How a text could go on: the likeliest tokens with their probability before and after the
    cuts, how much was cut off, and the one that the seed draws.

    p(t) ~ exp(logit(t) / temperature); temperature 0 takes the likeliest.
    """
    model = subject.at(moment)
    ids = subject.ids(text)
    read = pinned(changes, ids, model.vocabulary_size)
    begin = max(0, len(ids) - model.context)
    with applied(subject, model, changes, begin):
        logits_V = model(torch.tensor([read[begin:]]))[0, -1].double()
    if logits_V.isnan().any():
        raise UserError("the model's logits are NaN there")
    plain_V = logits_V.softmax(0)
    if temperature > 0:
        shifted_V = (logits_V - logits_V.max()) / temperature
        heated_V = shifted_V.softmax(0)
    else:
        heated_V = torch.zeros_like(plain_V)
        heated_V[plain_V.argmax()] = 1
    kept_V = truncation.kept(heated_V[None])[0] & (heated_V > 0)
    cut_V = truncation.of(heated_V[None])[0]
    rng = torch.Generator().manual_seed(seed)
    drawn = int(torch.multinomial(cut_V, 1, generator=rng))
    order = plain_V.argsort(descending=True)[:SHOWN].tolist()
    if drawn not in order:
        order.append(drawn)
    return {
        "tokens": [
            {
                "id": id_,
                "text": subject.shown([id_])[0],
                "ends": id_ == subject.tokenizer.bos,
                "plain": float(f"{plain_V[id_]:.6g}"),
                "heated": float(f"{heated_V[id_]:.6g}"),
                "p": float(f"{cut_V[id_]:.6g}"),
            }
            for id_ in order
        ],
        "kept": int(kept_V.sum()),
        "of": len(plain_V),
        "cut_off": float(f"{heated_V[~kept_V].sum():.6g}"),
        "drawn": drawn,
    }
