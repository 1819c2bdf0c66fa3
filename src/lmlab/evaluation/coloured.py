"""The beginning of the validation text with every token's cross-entropy and the likeliest tokens.

It is written to results/heldout.json, whose record is in `heldout`; the report colours the text by
it. The cross-entropies are those of the whole split's score, and the likeliest tokens are computed
in the same windows.
"""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import torch

from lmlab.data.tokenizers.base import Ids, Tokenizer
from lmlab.evaluation.heldout import Guess, HeldOut, Piece
from lmlab.model.generation import MAX_HELD_TOKENS
from lmlab.model.models.base import LanguageModel
from lmlab.model.scoring import Score, windows

MOST_CHARACTERS = 2000
MOST_GUESSES = 5
DIGITS = 3
UNREADABLE = "\ufffd"


class Span(NamedTuple):
    """Targets `start` to `end` of the stream, and the whole characters that they spell together."""

    text: str
    start: int
    end: int


def held_out(
    model: LanguageModel,
    stream: Ids,
    scored: Score,
    tokenizer: Tokenizer,
    stride: int,
    split: str,
) -> HeldOut:
    """The first MOST_CHARACTERS of a split; `stream` is its ids and `scored` its score."""
    spans = list(_spans(stream[1:], tokenizer, MOST_CHARACTERS))
    count = spans[-1].end if spans else 0
    guesses = _likeliest(model, stream, stride, count, tokenizer)
    pieces = []
    for span in spans:
        nats = float(scored.nats_by_target[span.start : span.end].sum())
        if np.isnan(nats):  # a BOS token, which is not scored
            pieces.append(Piece(span.text, None, ()))
        else:
            pieces.append(Piece(span.text, round(nats, DIGITS), guesses[span.start]))
    return HeldOut(split=split, pieces=tuple(pieces))


def _spans(targets: Ids, tokenizer: Tokenizer, characters: int) -> Iterator[Span]:
    """A span for each token, until there are so many characters.

    Tokens that hold only a part of a character share a span. A BOS token has one of its own,
    without text.
    """
    start, seen = 0, 0
    for place, token in enumerate(targets.tolist()):
        if token == tokenizer.bos:
            if start < place:
                yield Span(tokenizer.decode(targets[start:place]), start, place)
            yield Span("", place, place + 1)
            start = place + 1
            continue
        held = targets[start : place + 1]
        text = tokenizer.decode(held)
        is_whole = bool(text) and not text.endswith(UNREADABLE)
        if is_whole or len(held) >= MAX_HELD_TOKENS:
            yield Span(text, start, place + 1)
            start = place + 1
            seen += len(text)
        if seen >= characters:
            return
    if start < len(targets):
        yield Span(tokenizer.decode(targets[start:]), start, len(targets))


@torch.no_grad()
def _likeliest(
    model: LanguageModel, stream: Ids, stride: int, count: int, tokenizer: Tokenizer
) -> list[tuple[Guess, ...]]:
    """For each of the first `count` targets the MOST_GUESSES likeliest tokens."""
    device = next(model.parameters()).device
    was_training = model.training
    model.eval()
    length = len(stream) - 1
    width = min(model.context, length)
    guesses: list[tuple[Guess, ...]] = []
    for start, first in windows(length, model.context, stride):
        if first >= count:
            break
        ids_T = torch.from_numpy(stream[start : start + width].astype(np.int64)).to(device)
        logits_TV = model(ids_T[None])[0, first - start :]
        best = logits_TV.float().softmax(-1).topk(min(MOST_GUESSES, logits_TV.shape[-1]))
        for tokens, shares in zip(best.indices.tolist(), best.values.tolist(), strict=True):
            texts = [_guessed(token, tokenizer) for token in tokens]
            rounded = [round(share, DIGITS) for share in shares]
            guesses.append(tuple(map(Guess, texts, rounded)))
    model.train(was_training)
    return guesses[:count]


def _guessed(token: int, tokenizer: Tokenizer) -> str | None:
    """A token's text, U+FFFD where it is none by itself; None for the BOS token."""
    if token == tokenizer.bos:
        return None
    return tokenizer.token_bytes[token].decode("utf-8", "replace") or UNREADABLE
