"""A text under a model, window by window: what it predicted where, and what it computed there.

Token i of a text is predicted at position i, where the model has read BOS and the tokens before it.
A text longer than the context is read in windows that overlap by half; each token is scored in the
first window that holds it, so it has at least half the context before it where there is so much.
"""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from lmlab.core.errors import UserError
from lmlab.evaluation.effects import effects
from lmlab.explorer import features
from lmlab.explorer.changes import Change, Pin, applied, function_of, pinned
from lmlab.explorer.subject import Subject
from lmlab.model import places
from lmlab.model.models.base import LanguageModel
from lmlab.model.scoring import Window, windows

MOST_CHARACTERS = 200_000
"""Of a text that is looked at."""
GUESSES = 8
"""The likeliest tokens that are told at each position."""
UNITS = 12
"""The most active units that are told of a layer."""


@dataclass(frozen=True)
class Text:
    """A text in a subject's tokens, and the windows in which it is read."""

    ids: list[int]
    """BOS first."""
    windows: list[Window]
    width: int

    @classmethod
    def of(cls, subject: Subject, text: str) -> "Text":
        """Raises UserError where it is too long."""
        if len(text) > MOST_CHARACTERS:
            raise UserError(
                f"the text has {len(text):,} characters; at most {MOST_CHARACTERS:,} are looked at"
            )
        ids = subject.ids(text)
        context = subject.model.context
        stride = max(1, context // 2)
        width = min(context, len(ids) - 1)
        return cls(ids, list(windows(len(ids) - 1, context, stride)) if width else [], width)

    def window(self, number: int) -> Window:
        """Raises UserError where there are fewer."""
        if not 0 <= number < len(self.windows):
            raise UserError(
                f"the text is read in {len(self.windows)} windows; there is no {number}"
            )
        return self.windows[number]

    def window_of(self, token: int) -> int:
        """The number of the window in which a token is scored."""
        for number, window in enumerate(self.windows):
            if window.first_unscored <= token < window.start + self.width:
                return number
        raise UserError(f"the text has no token {token}; it has {len(self.ids) - 1}")


@torch.no_grad()
def read_window(
    subject: Subject, moment: int, text: str, number: int, changes: Sequence[Change]
) -> dict[str, Any]:
    """The tokens that a window scores: of the model as it is, and with the changes if there are
    any. `count` is the number of windows; the text's tokens come with the first.
    """
    model, whole = subject.at(moment), Text.of(subject, text)
    answer: dict[str, Any] = {"count": len(whole.windows)}
    if number == 0:
        pieces = subject.pieces(text, whole.ids[1:])
        answer["texts"] = [piece.decode("utf-8", "replace") for piece in pieces]
        answer["sizes"] = [len(piece) for piece in pieces]
        answer["ids"] = whole.ids[1:]
    if not whole.windows:
        return answer
    window = whole.window(number)
    tokens_BT, targets_T, first = _inputs(whole, window, whole.ids)
    with places.record(model, _lens_places(model)) as states:
        logits_TV = model(tokens_BT)[0]
    if logits_TV.isnan().any():
        raise UserError(
            f"{subject.name} gives no numbers at this moment (NaN): its training diverged; choose"
            " an earlier moment or another run"
        )
    answer["first"] = window.first_unscored
    answer["plain"] = _told(subject, model, logits_TV, targets_T, states, first)
    if changes:
        read = pinned(changes, whole.ids, model.vocabulary_size)
        tokens_BT, _, _ = _inputs(whole, window, read)
        with (
            applied(subject, model, changes, window.start),
            places.record(model, _lens_places(model)) as states,
        ):
            changed_TV = model(tokens_BT)[0]
        if changed_TV.isnan().any():
            raise UserError("with these changes the model gives no numbers (NaN); take one back")
        answer["changed"] = _told(subject, model, changed_TV, targets_T, states, first)
        answer["direct"] = _direct(subject, model, tokens_BT, targets_T, changes, window, first)
    return answer


def _inputs(whole: Text, window: Window, read: list[int]) -> tuple[Tensor, Tensor, int]:
    """What the model reads in a window, what it predicts, and its first position that counts."""
    until = window.start + whole.width
    tokens_BT = torch.tensor([read[window.start : until]])
    targets_T = torch.tensor(whole.ids[window.start + 1 : until + 1])
    return tokens_BT, targets_T, window.first_unscored - window.start


def _lens_places(model: LanguageModel) -> list[str]:
    """The stream behind each block, where the output head can read it."""
    if model.readout is None:
        return []
    return [f"blocks.{number}.output" for number in range(len(model.blocks))]


def _told(
    subject: Subject,
    model: LanguageModel,
    logits_TV: Tensor,
    targets_T: Tensor,
    states: dict[str, Tensor],
    first: int,
) -> dict[str, Any]:
    """Of each position from `first` on: nats, rank of what came, likeliest tokens, and the same
    behind each block (logit lens).
    """
    log_TV = logits_TV[first:].double().log_softmax(-1)
    targets_T = targets_T[first:]
    own_T = log_TV.gather(1, targets_T[:, None])
    top = log_TV.topk(min(GUESSES, log_TV.shape[1]))
    lens = []
    for place in _lens_places(model):
        block_TV = model.head(states[place])[0, first:].double().log_softmax(-1)
        highest = block_TV.max(-1)
        lens.append(
            {
                "texts": subject.shown(highest.indices.tolist()),
                "ids": highest.indices.tolist(),
                "p": _rounded(highest.values.exp()),
                "nats": _rounded(-block_TV.gather(1, targets_T[:, None])[:, 0]),
            }
        )
    return {
        "nats": _rounded(-own_T[:, 0]),
        "rank": (log_TV > own_T).sum(1).tolist(),
        "guesses": [
            [[subject.shown([id_])[0], id_, p] for id_, p in zip(ids, shares, strict=True)]
            for ids, shares in zip(top.indices.tolist(), _rounded(top.values.exp()), strict=True)
        ],
        "lens": lens,
    }


def _direct(
    subject: Subject,
    model: LanguageModel,
    tokens_BT: Tensor,
    targets_T: Tensor,
    changes: Sequence[Change],
    window: Window,
    first: int,
) -> dict[str, Any]:
    """The nats of each token where later blocks add what they added before; or why not."""
    if any(isinstance(change, Pin) for change in changes):
        return {"why_not": "a pinned token has no direct effect: it changes what is read"}
    functions: dict[str, list[places.Change]] = {}
    for change in changes:
        assert not isinstance(change, Pin)
        if change.place in subject.tables():
            return {"why_not": "a table of n-grams is no place in the stream"}
        function = function_of(subject, model, change, window.start)
        functions.setdefault(change.place, []).append(function)
    try:
        seen = effects(model, tokens_BT, {place: _all(each) for place, each in functions.items()})
    except UserError as error:
        return {"why_not": str(error)}
    logits_TV = (model(tokens_BT) + seen.direct)[0, first:].double()
    own_T = logits_TV.log_softmax(-1).gather(1, targets_T[first:, None])[:, 0]
    return {"nats": _rounded(-own_T)}


def _all(functions: Sequence[places.Change]) -> places.Change:
    """The first function, then the second of what it made, and so on."""

    def change(x: Tensor) -> Tensor:
        for function in functions:
            x = function(x)
        return x

    return change


def _rounded(values: Tensor) -> Any:
    """Six digits: what a page shows, in fewer bytes."""
    if values.ndim > 1:
        return [_rounded(row) for row in values]
    return [float(f"{value:.6g}") for value in values.tolist()]


@torch.no_grad()
def look_at(
    subject: Subject, moment: int, text: str, token: int, changes: Sequence[Change]
) -> dict[str, Any]:
    """What the model computed where it predicted a token: where each head looked, which units were
    most active, how long each vector is, what tables of n-grams gave, and which features were
    active, of places where these are known.
    """
    model, whole = subject.at(moment), Text.of(subject, text)
    window = whole.window(whole.window_of(token))
    tokens_BT, _, _ = _inputs(whole, window, pinned(changes, whole.ids, model.vocabulary_size))
    position = token - window.start
    tokens_BT = tokens_BT[:, : position + 1]
    tables: dict[str, Tensor] = {}
    with (
        applied(subject, model, changes, window.start),
        places.record(model) as states,
        _outputs(model, subject.tables(), tables),
    ):
        model(tokens_BT)
    answer: dict[str, Any] = {"begin": window.start, "heads": [], "layers": []}
    for name, state in states.items():
        if name == "logits":
            continue
        if name.endswith(".pattern"):
            for head, weights_S in enumerate(state[0, :, -1]):
                answer["heads"].append(
                    {"place": name, "head": head, "weights": _rounded(weights_S)}
                )
        elif state.shape[1] == position + 1:
            answer["layers"].append(_layer(name, state[0, -1]))
    answer["layers"] += [_layer(name, given[0, -1]) for name, given in tables.items()]
    read = tokens_BT[0].tolist()
    with applied(subject, model, changes, window.start):
        answer["features"] = [
            features.at(subject, features.known(subject, moment, place), read)
            for place in features.known_places(subject, moment)
        ]
    return answer


@contextmanager
def _outputs(
    model: LanguageModel, modules: Sequence[str], found: dict[str, Tensor]
) -> Iterator[None]:
    """Inside, each call of the model writes what these modules give into `found`."""

    def keeper(name: str) -> Any:
        return lambda module, inputs, output: found.update({name: output})

    with ExitStack() as stack:
        for name in modules:
            handle = model.get_submodule(name).register_forward_hook(keeper(name))
            stack.callback(handle.remove)
        yield


def _layer(name: str, values: Tensor) -> dict[str, Any]:
    """A layer at one position: its length, and its most active parts."""
    by_part = values if values.ndim == 1 else values.flatten(1).norm(dim=1)
    top = by_part.abs().topk(min(UNITS, len(by_part)))
    return {
        "place": name,
        "size": len(by_part),
        "length": float(f"{values.norm():.6g}"),
        "active": int((by_part != 0).sum()),
        "top": [
            [index, value]
            for index, value in zip(
                top.indices.tolist(), _rounded(by_part[top.indices]), strict=True
            )
        ],
    }
