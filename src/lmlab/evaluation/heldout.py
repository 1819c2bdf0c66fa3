"""The record results/heldout.json: held-out text in pieces, each with its cross-entropy.

A piece is the text of one token, or of the few tokens that make up one character. The file has one
piece on each line: its text, its cross-entropy in nats, and the likeliest tokens with their
probabilities.
"""

import json
from typing import NamedTuple

from pydantic import BaseModel, ConfigDict


class Guess(NamedTuple):
    """One of the tokens that the model found likeliest, and its probability."""

    text: str | None
    """None for the BOS token, that is, for the end of the document."""
    probability: float


class Piece(NamedTuple):
    """A stretch of text that was predicted as a whole."""

    text: str
    """Empty where a new document begins."""
    nats: float | None
    """None where nothing is scored."""
    guesses: tuple[Guess, ...]
    """The likeliest first."""


class HeldOut(BaseModel):
    """The beginning of a held-out split as the model predicts it."""

    model_config = ConfigDict(frozen=True)

    split: str
    pieces: tuple[Piece, ...]


def dumps(heldout: HeldOut) -> str:
    """The record as JSON, one piece on each line."""
    lines = [
        json.dumps(piece, ensure_ascii=False, separators=(",", ":")) for piece in heldout.pieces
    ]
    inner = "".join(f"\n    {line}," for line in lines).removesuffix(",")
    end = "\n  ]" if lines else "]"
    return f'{{\n  "split": {json.dumps(heldout.split)},\n  "pieces": [{inner}{end}\n}}\n'
