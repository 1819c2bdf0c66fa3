"""Bytes: a text's ids are its bytes in UTF-8, so nothing is unknown."""

from collections.abc import Iterable
from typing import Any, Self

import numpy as np

from lmlab.core.params import Params
from lmlab.data.tokenizers.base import Ids, Tokenizer


class Options(Params):
    """This tokenizer has none."""


class Byte(Tokenizer):
    """An id is a byte; 256 is the BOS token."""

    grows = False

    def __init__(self) -> None:
        self.token_bytes = [bytes([value]) for value in range(256)] + [b""]
        self.bos = 256

    @classmethod
    def fit(cls, options: Options, texts: Iterable[str]) -> Self:
        return cls()

    def grown(self, texts: Iterable[str], tokens: int) -> Self:
        """This tokenizer itself: there are no other bytes."""
        return self

    def encode(self, text: str) -> Ids:
        return np.frombuffer(text.encode("utf-8", "surrogatepass"), dtype=np.uint8)

    def decode(self, ids: Ids) -> str:
        return ids[ids < 256].astype(np.uint8).tobytes().decode("utf-8", "replace")

    def state(self) -> dict[str, Any]:
        return {"special": {"bos": self.bos}}

    @classmethod
    def from_state(cls, state: dict[str, Any]) -> Self:
        if state["special"]["bos"] != cls().bos:
            raise ValueError("a BOS token that does not follow the bytes")
        return cls()
