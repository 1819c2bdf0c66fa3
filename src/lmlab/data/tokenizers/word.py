"""Words: an id for each of the most frequent pre-tokens; any other is spelled in bytes, so none is
unknown.
"""

from collections import Counter
from collections.abc import Iterable, Set
from typing import Any, Self

from lmlab.data import pretokens
from lmlab.data.tokenizers.base import (
    BYTES,
    Ids,
    SizedOptions,
    Spellings,
    Tokenizer,
    joined,
    with_bos,
)


class Options(SizedOptions):
    """How many words get an id."""


class Word(Tokenizer):
    """Ids 0 to 255 are the bytes; the words follow, most frequent first, with the BOS token among
    them.

    A word is a pre-token, with the space before it. A word of a single byte has that byte's id.
    """

    def __init__(self, words: list[str], bos: int) -> None:
        self.bos = bos
        self.words = words
        self.token_bytes = with_bos([*BYTES, *(word.encode("utf-8") for word in words)], bos)
        self._known = {piece: [place] for place, piece in enumerate(self.token_bytes) if piece}
        if len(self._known) != len(words) + 256:
            raise ValueError("a repeated word")
        self._spellings = Spellings(lambda word: self._known.get(word) or list(word))

    @classmethod
    def fit(cls, options: Options, texts: Iterable[str]) -> Self:
        words = _most_frequent(pretokens.count(texts), options.vocabulary_size - 257, set(BYTES))
        return cls(words, 256 + len(words))

    def grown(self, texts: Iterable[str], tokens: int) -> Self:
        """Give an id to the most frequent words of the texts that have none yet."""
        fresh = _most_frequent(pretokens.count(texts), tokens, self._known.keys())
        return type(self)([*self.words, *fresh], self.bos)

    def encode(self, text: str) -> Ids:
        return self._spellings.encode(text)

    def decode(self, ids: Ids) -> str:
        return joined(self.token_bytes, ids)

    def state(self) -> dict[str, Any]:
        return {"special": {"bos": self.bos}, "words": self.words}

    @classmethod
    def from_state(cls, state: dict[str, Any]) -> Self:
        return cls(state["words"], state["special"]["bos"])


def _most_frequent(counts: Counter[str], most: int, known: Set[bytes]) -> list[str]:
    """The `most` most frequent words that are not known, equally frequent ones by code point."""
    fresh = [word for word in counts if word.encode("utf-8") not in known]
    return sorted(fresh, key=lambda word: (-counts[word], word))[:most]
