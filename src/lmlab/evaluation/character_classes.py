"""Cross-entropy by class of character: which kinds of character a model's bits are spent on."""

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from lmlab.data.tokenizers.base import Ids
from lmlab.model.scoring import Score

CLASSES = (
    "letter_at_word_start",
    "letter_in_word",
    "capital",
    "digit",
    "space",
    "newline",
    "punctuation",
    "other",
)
COLUMNS = ("class", "tokens", "bytes", "nats", "nats_per_byte", "share_of_bytes", "share_of_nats")
NO_BYTE = 256
"""Stands for the first byte of a token that has no bytes of its own."""
_NUMBER = {name: number for number, name in enumerate(CLASSES)}


def table(scored: Score, stream: Ids, token_bytes: list[bytes]) -> pd.DataFrame:
    """One row for each class that occurs, with COLUMNS; shares are of the split's bytes and nats.

    A token of several characters counts, with all its bytes, in the class of its first byte. A
    lower-case letter is at the start of a word unless it directly follows a letter, upper or lower
    case. `other` holds everything outside ASCII, control characters, and tokens without bytes of
    their own (nats per byte are missing where it holds nothing else).
    """
    targets = stream[1:]
    class_N = _classes_of_targets(stream, token_bytes)
    size_N = np.array([len(piece) for piece in token_bytes])[targets]
    scored_N = ~np.isnan(scored.nats_by_target)
    class_N, size_N, nats_N = class_N[scored_N], size_N[scored_N], scored.nats_by_target[scored_N]

    count = len(CLASSES)
    columns = {
        "class": CLASSES,
        "tokens": np.bincount(class_N, minlength=count),
        "bytes": np.bincount(class_N, weights=size_N, minlength=count).astype(np.int64),
        "nats": np.bincount(class_N, weights=nats_N, minlength=count),
    }
    rows = pd.DataFrame(columns)
    rows = rows[rows["tokens"] > 0].reset_index(drop=True)
    rows["nats_per_byte"] = rows["nats"] / rows["bytes"].where(rows["bytes"] > 0)
    rows["share_of_bytes"] = rows["bytes"] / rows["bytes"].sum()
    rows["share_of_nats"] = rows["nats"] / rows["nats"].sum()
    return rows


def _classes_of_targets(stream: Ids, token_bytes: list[bytes]) -> NDArray[np.int64]:
    """The number in CLASSES of each of the stream's targets, its second id being the first."""
    class_of_byte = np.array([_class_of_byte(value) for value in range(256)] + [_NUMBER["other"]])
    first_byte = [piece[0] if piece else NO_BYTE for piece in token_bytes]
    class_of_token = class_of_byte[first_byte]
    ends_in_letter = np.array([_ends_in_letter(piece) for piece in token_bytes], dtype=bool)

    class_N: NDArray[np.int64] = class_of_token[stream[1:]]
    follows_letter_N = ends_in_letter[stream[:-1]]
    starts_word_N = (class_N == _NUMBER["letter_in_word"]) & ~follows_letter_N
    class_N[starts_word_N] = _NUMBER["letter_at_word_start"]
    return class_N


def _ends_in_letter(piece: bytes) -> bool:
    """Whether the last byte is an ASCII letter."""
    return piece[-1:].isalpha()


def _class_of_byte(value: int) -> int:
    """The number in CLASSES of a byte that does not begin a word."""
    character = chr(value)
    if value >= 128 or not (character.isprintable() or character in "\t\n\r"):
        return _NUMBER["other"]
    if character.isupper():
        return _NUMBER["capital"]
    if character.isalpha():
        return _NUMBER["letter_in_word"]
    if character.isdigit():
        return _NUMBER["digit"]
    if character in " \t":
        return _NUMBER["space"]
    if character in "\n\r":
        return _NUMBER["newline"]
    return _NUMBER["punctuation"]
