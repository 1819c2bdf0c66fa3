"""What each class of character costs: where in a text a model's bits go."""

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
_LETTER, _OTHER = CLASSES.index("letter_in_word"), CLASSES.index("other")


def _of_byte(value: int) -> int:
    character = chr(value)
    if value >= 128:
        return _OTHER
    if character.isalpha():
        return CLASSES.index("capital") if character.isupper() else _LETTER
    if character.isdigit():
        return CLASSES.index("digit")
    if character in " \t":
        return CLASSES.index("space")
    if character in "\n\r":
        return CLASSES.index("newline")
    return CLASSES.index("punctuation") if character.isprintable() else _OTHER


def table(scored: Score, stream: Ids, token_bytes: list[bytes]) -> pd.DataFrame:
    """A row for each class that occurs: tokens, bytes, nats, nats per byte, and shares of the
    split's bytes and nats.

    A token of several characters is charged, with all its bytes, to the class of its first byte. A
    small letter is at a word's start unless a letter, capital or small, stands right before it.
    Other: whatever is not ASCII, control characters, and tokens that have no bytes of their own
    (with no nats per byte if there is nothing else).
    """
    class_of_byte = np.array([_of_byte(value) for value in range(256)] + [_OTHER])
    first = class_of_byte[[piece[0] if piece else 256 for piece in token_bytes]]
    ends_in_letter = np.array(
        [piece[-1:].isalpha() and piece[-1] < 128 for piece in token_bytes], dtype=bool
    )
    size = np.array([len(piece) for piece in token_bytes])

    targets = stream[1:]
    classes: NDArray[np.int64] = first[targets]
    starts = (classes == _LETTER) & ~ends_in_letter[stream[:-1]]
    classes[starts] = CLASSES.index("letter_at_word_start")
    charged = ~np.isnan(scored.nats_by_target)
    count = len(CLASSES)
    rows = pd.DataFrame(
        {
            "class": CLASSES,
            "tokens": np.bincount(classes[charged], minlength=count),
            "bytes": np.bincount(
                classes[charged], weights=size[targets][charged], minlength=count
            ).astype(np.int64),
            "nats": np.bincount(
                classes[charged], weights=scored.nats_by_target[charged], minlength=count
            ),
        }
    )
    rows = rows[rows["tokens"] > 0].reset_index(drop=True)
    rows["nats_per_byte"] = rows["nats"] / rows["bytes"].where(rows["bytes"] > 0)
    rows["share_of_bytes"] = rows["bytes"] / rows["bytes"].sum()
    rows["share_of_nats"] = rows["nats"] / rows["nats"].sum()
    return rows
