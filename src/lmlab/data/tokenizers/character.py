"""Characters: an id for each character of the train split; any other character is spelled out.

A spelling is the `unseen` token followed by the code point in base n + 1, most significant digit
first. The ids 0 to n (n characters and the `unseen` token) serve as the digits, always as many as
the largest code point needs. So any text is recovered exactly, the vocabulary has only one extra
id, and a spelling costs ordinary tokens.
"""

from collections import Counter
from collections.abc import Iterable, Sequence
from itertools import islice
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from lmlab.core.errors import UserError
from lmlab.core.params import Params
from lmlab.data.tokenizers.base import Ids, Tokenizer

CODE_POINTS = 0x110000
REPLACEMENT = "\ufffd"


class Options(Params):
    """This tokenizer has none."""


class Character(Tokenizer):
    """Ids 0 to n-1 are the characters by code point, n is `unseen`, n+1 the BOS token.

    Characters added by `grown` get the ids from n+2 on; others are still spelled with the first n+1
    ids.
    """

    def __init__(self, characters: list[str], later: Sequence[str] = ()) -> None:
        if not characters:
            raise ValueError("a vocabulary without characters")
        self.characters, self.later = characters, list(later)
        self.unseen = len(characters)
        self.bos = self.unseen + 1
        self.base = self.unseen + 1
        self.digits = next(count for count in range(1, 22) if self.base**count >= CODE_POINTS)
        by_id = [*characters, "", "", *later]
        self.token_bytes = [character.encode("utf-8", "surrogatepass") for character in by_id]
        code_points = [ord(character or REPLACEMENT) for character in by_id]
        self._code_points = np.array(code_points, dtype=np.uint32)
        self._type = np.min_scalar_type(len(by_id) - 1 if later else self.unseen)
        # a slot for each code point up to the largest known, and one for all beyond
        known = np.array([i for i, character in enumerate(by_id) if character])
        slots = int(self._code_points[known].max()) + 2
        self._ids = np.full(slots, self.unseen, dtype=self._type)
        self._ids[self._code_points[known]] = known

    @classmethod
    def fit(cls, options: Options, texts: Iterable[str]) -> Self:
        characters: set[str] = set()
        for text in texts:
            characters.update(text)
        if not characters:
            raise UserError(
                "the train split holds no text to fit a tokenizer to; run `dvc repro download`"
            )
        return cls(sorted(characters))

    def grown(self, texts: Iterable[str], tokens: int) -> Self:
        """Give an id to the most frequent characters of the texts that have none yet."""
        counts: Counter[str] = Counter()
        for text in texts:
            counts.update(text)
        half_surrogates = set(map(chr, range(0xD800, 0xE000)))  # which are no text
        unknown = counts.keys() - {*self.characters, *self.later} - half_surrogates
        by_frequency = sorted(unknown, key=lambda character: (-counts[character], character))
        return type(self)(self.characters, [*self.later, *by_frequency[:tokens]])

    def encode(self, text: str) -> Ids:
        code_points = np.frombuffer(text.encode("utf-32-le", "surrogatepass"), dtype=np.uint32)
        ids = self._ids[np.minimum(code_points, len(self._ids) - 1)]
        places = np.flatnonzero(ids == self.unseen)
        if not len(places):
            return ids
        place_values = self.base ** np.arange(self.digits - 1, -1, -1)
        digits = code_points[places, None].astype(np.int64) // place_values % self.base
        positions = np.repeat(places + 1, self.digits)
        return np.insert(ids, positions, digits.ravel().astype(self._type))

    def decode(self, ids: Ids) -> str:
        ids = ids[ids != self.bos]
        if not (ids == self.unseen).any():
            return _text(self._code_points[ids])
        code_points = []
        remaining = iter(ids.tolist())
        for i in remaining:
            if i == self.unseen:
                digits = list(islice(remaining, self.digits))
                code_points.append(self._spelled(digits))
            else:
                code_points.append(int(self._code_points[i]))
        return _text(np.array(code_points, dtype=np.uint32))

    def _spelled(self, digits: list[int]) -> int:
        """The code point that digits spell, or that of U+FFFD where they spell none."""
        code_point = 0
        for digit in digits:
            code_point = code_point * self.base + digit
        is_complete = len(digits) == self.digits and max(digits) < self.base
        return code_point if is_complete and code_point < CODE_POINTS else ord(REPLACEMENT)

    def state(self) -> dict[str, Any]:
        return {
            "special": {"bos": self.bos},
            "unseen": self.unseen,
            "characters": self.characters,
            "later": self.later,
        }

    @classmethod
    def from_state(cls, state: dict[str, Any]) -> Self:
        tokenizer = cls(state["characters"], state["later"])
        if (tokenizer.unseen, tokenizer.bos) != (state["unseen"], state["special"]["bos"]):
            raise ValueError("ids that do not fit the characters")
        return tokenizer


def _text(code_points: NDArray[np.uint32]) -> str:
    # half surrogates are code points but no text: they cannot be printed
    return code_points.tobytes().decode("utf-32-le", "replace")
