"""Characters: one id for each character of the train split; a character never seen there is spelled
out.

Its spelling is the `unseen` token and then its code point in base n + 1, most significant digit
first, written with the ids 0..n themselves (n characters and the `unseen` token), always as many
digits as the largest code point needs. So every text comes back whole, the vocabulary grows by one
id only, and what the spelling costs is paid in ordinary tokens.
"""

from collections import Counter
from collections.abc import Iterable, Sequence
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
    """Ids 0..n-1 are the characters in the order of their code points, n is `unseen`, n+1 the BOS
    token.

    Characters that come later get the ids from n+2 on; those still unseen are spelled with the
    first n+1 ids as before.
    """

    def __init__(self, characters: list[str], later: Sequence[str] = ()) -> None:
        if not characters:
            raise ValueError("a vocabulary without characters")
        self.characters, self.later = characters, list(later)
        self.unseen = len(characters)
        self.bos = self.unseen + 1
        self.base = self.unseen + 1
        self.digits = next(count for count in range(1, 22) if self.base**count >= CODE_POINTS)
        of_each = [*characters, "", "", *later]
        self.token_bytes = [character.encode("utf-8", "surrogatepass") for character in of_each]
        self._points = np.array(
            [ord(character or REPLACEMENT) for character in of_each], dtype=np.uint32
        )
        self._type = np.min_scalar_type(len(of_each) - 1 if later else self.unseen)
        # one slot for each code point up to the largest known, and one for all beyond
        known = np.array([place for place, character in enumerate(of_each) if character])
        self._ids = np.full(int(self._points[known].max()) + 2, self.unseen, dtype=self._type)
        self._ids[self._points[known]] = known

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
        """The most frequent characters of the texts that have no id yet get one."""
        counts: Counter[str] = Counter()
        for text in texts:
            counts.update(text)
        fresh = (
            counts.keys()
            - {*self.characters, *self.later}
            - {chr(point) for point in range(0xD800, 0xE000)}
        )  # half surrogates are no text
        return type(self)(
            self.characters,
            [*self.later, *sorted(fresh, key=lambda one: (-counts[one], one))[:tokens]],
        )

    def encode(self, text: str) -> Ids:
        points = np.frombuffer(text.encode("utf-32-le", "surrogatepass"), dtype=np.uint32)
        ids = self._ids[np.minimum(points, len(self._ids) - 1)]
        places = np.flatnonzero(ids == self.unseen)
        if not len(places):
            return ids
        weights = self.base ** np.arange(self.digits - 1, -1, -1)
        spelled = points[places, None].astype(np.int64) // weights % self.base
        return np.insert(
            ids, np.repeat(places + 1, self.digits), spelled.ravel().astype(self._type)
        )

    def decode(self, ids: Ids) -> str:
        ids = ids[ids != self.bos]
        if not (ids == self.unseen).any():
            return _text(self._points[ids])
        points, at, values = [], 0, ids.tolist()
        while at < len(values):
            if values[at] != self.unseen:
                points.append(int(self._points[values[at]]))
                at += 1
                continue
            digits = values[at + 1 : at + 1 + self.digits]
            point = 0
            for digit in digits:
                point = point * self.base + digit
            whole = len(digits) == self.digits and max(digits) < self.base and point < CODE_POINTS
            points.append(point if whole else ord(REPLACEMENT))
            at += 1 + self.digits
        return _text(np.array(points, dtype=np.uint32))

    def state(self) -> dict[str, Any]:
        special = {"bos": self.bos}
        return {
            "special": special,
            "unseen": self.unseen,
            "characters": self.characters,
            "later": self.later,
        }

    @classmethod
    def from_state(cls, state: dict[str, Any]) -> Self:
        made = cls(state["characters"], state["later"])
        if (made.unseen, made.bos) != (state["unseen"], state["special"]["bos"]):
            raise ValueError("a vocabulary that does not fit together")
        return made


def _text(points: NDArray[np.uint32]) -> str:
    # half surrogates are code points, but no text: what holds one cannot be printed
    return points.tobytes().decode("utf-32-le", "replace")
