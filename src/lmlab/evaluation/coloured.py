"""The beginning of the validation text with every token's cross-entropy and the likeliest tokens.

It is written to results/heldout.json, whose record is in `heldout`; the report colours the text by
it. The cross-entropies are those of the whole split's score, and the likeliest tokens are computed
in the same windows.
"""

import codecs
from collections.abc import Iterator, Sequence

import numpy as np
import torch

from lmlab.data.tokenizers.base import Ids
from lmlab.evaluation.heldout import Guess, HeldOut, Piece
from lmlab.model.models.base import LanguageModel
from lmlab.model.scoring import Score, windows

MOST_CHARACTERS = 2000
MOST_GUESSES = 5
DIGITS = 3


def held_out(
    model: LanguageModel,
    stream: Ids,
    scored: Score,
    token_bytes: Sequence[bytes],
    bos: int,
    stride: int,
    split: str,
) -> HeldOut:
    """The first MOST_CHARACTERS of a split; `stream` is its ids and `scored` its score."""
    targets = stream[1:]
    count = _tokens_in(targets, token_bytes, bos, MOST_CHARACTERS)
    guesses = _likeliest(model, stream, stride, count, token_bytes, bos)
    nats = scored.nats_of[:count].tolist()
    pieces = _pieces(targets[:count].tolist(), nats, guesses, token_bytes, bos)
    return HeldOut(split=split, pieces=tuple(pieces))


def _tokens_in(targets: Ids, token_bytes: Sequence[bytes], bos: int, characters: int) -> int:
    """How many tokens, from the first, hold at least so many characters; all if there are fewer."""
    decoder = codecs.getincrementaldecoder("utf-8")("replace")
    seen = 0
    for count, token in enumerate(targets.tolist(), start=1):
        if token != bos:
            seen += len(decoder.decode(token_bytes[token]))
        if seen >= characters:
            return count
    return len(targets)


@torch.no_grad()
def _likeliest(
    model: LanguageModel,
    stream: Ids,
    stride: int,
    count: int,
    token_bytes: Sequence[bytes],
    bos: int,
) -> list[tuple[Guess, ...]]:
    """For each of the first `count` targets the MOST_GUESSES likeliest tokens."""
    device = next(model.parameters()).device
    was_training = model.training
    model.eval()
    length = len(stream) - 1
    width = min(model.context, length)
    found: list[tuple[Guess, ...]] = []
    for start, first in windows(length, model.context, stride):
        if first >= count:
            break
        window = stream[start : start + width].astype(np.int64)
        logits_TV = model(torch.from_numpy(window).to(device)[None])[0, first - start :]
        shares_TV = logits_TV.float().softmax(-1)
        best = shares_TV.topk(min(MOST_GUESSES, shares_TV.shape[-1]))
        for ids, shares in zip(best.indices.tolist(), best.values.tolist(), strict=True):
            texts = [_text(token, token_bytes, bos) for token in ids]
            rounded = [round(share, DIGITS) for share in shares]
            found.append(tuple(map(Guess, texts, rounded)))
    model.train(was_training)
    return found[:count]


def _text(token: int, token_bytes: Sequence[bytes], bos: int) -> str | None:
    return None if token == bos else token_bytes[token].decode("utf-8", "replace")


def _pieces(
    targets: list[int],
    nats: list[float],
    guesses: list[tuple[Guess, ...]],
    token_bytes: Sequence[bytes],
    bos: int,
) -> Iterator[Piece]:
    """Each token's text; tokens that hold only a part of a character are joined to the next.

    A joined piece costs what its tokens cost together, and has the guesses for the first of them.
    """
    decoder = codecs.getincrementaldecoder("utf-8")("replace")
    total, first = 0.0, None
    for token, cost, likeliest in zip(targets, nats, guesses, strict=True):
        if token == bos:
            decoder.reset()
            total, first = 0.0, None
            yield Piece("", None, ())
            continue
        total += cost
        first = likeliest if first is None else first
        text = decoder.decode(token_bytes[token])
        if text:
            yield Piece(text, round(total, DIGITS), first)
            total, first = 0.0, None
