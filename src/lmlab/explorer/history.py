"""One token of a text over a run: when the model learned to predict it."""

from collections.abc import Sequence
from typing import Any

import torch

from lmlab.core.errors import UserError
from lmlab.explorer.changes import Change
from lmlab.explorer.look import Text, read_window
from lmlab.explorer.subject import Subject


@torch.no_grad()
def over_training(
    subject: Subject, text: str, token: int, changes: Sequence[Change]
) -> list[dict[str, Any]]:
    """At every moment of a run: the step, and of one token its nats, its rank and the likeliest
    token there with its probability, each with the changes if there are any; None for all but the
    step where the model gave no numbers.
    """
    whole = Text.of(subject, text)
    number = whole.window_of(token)
    found: list[dict[str, Any]] = []
    for moment, (step, _, _) in enumerate(subject.moments):
        try:
            told = read_window(subject, moment, text, number, changes)
        except UserError:  # it had diverged
            found.append({"step": step, "nats": None, "rank": None, "guess": None, "p": None})
            continue
        side = told["changed"] if changes else told["plain"]
        at = token - told["first"]
        guess, _, p = side["guesses"][at][0]
        found.append(
            {
                "step": step,
                "nats": side["nats"][at],
                "rank": side["rank"][at],
                "guess": guess,
                "p": p,
            }
        )
    return found
