"""What a corpus is: a source of named documents, and facts about it that belong in the manifest."""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

PIECE_CHARACTERS = 1 << 20
"""How much of a long text to read at a time."""


class Document(NamedTuple):
    """One text. Its pieces, joined, are the text; a long one may come in many, so that memory stays
    small.
    """

    name: str
    pieces: Iterable[str]


class Corpus(ABC):
    """A source of text. Final classes take `(options)` and do their fetching in `documents`."""

    source: str
    """Where the text comes from: package and version, address, or how it is generated."""
    licence: str
    """The licence as its source states it."""

    @abstractmethod
    def documents(self) -> Iterator[Document]:
        """Every document, in an order that never changes. Raises UserError when the source cannot
        be read.
        """

    @abstractmethod
    def facts(self) -> dict[str, Any]:
        """What else the manifest should say: the archive's sha256, the exact entropy of a synthetic
        source, ...

        Asked for when all documents have been read. `left_out` counts by reason what of the source
        is in none of them.
        """
