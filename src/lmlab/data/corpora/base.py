"""What a corpus is: a source of named documents, with facts about it for the manifest."""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

PIECE_CHARACTERS = 1 << 20
"""How much of a long text is read at a time."""


class Document(NamedTuple):
    """One text: its pieces joined. A long text comes in several pieces, so that memory stays
    small.
    """

    name: str
    pieces: Iterable[str]


class Corpus(ABC):
    """A source of text. Concrete classes are final and take `(options)`.

    Building one neither fetches nor reads anything: `documents` does.
    """

    source: str
    """Where the text comes from: package and version, URL, or how it is generated. Never empty."""
    licence: str
    """The licence as the source states it. Never empty."""

    @abstractmethod
    def documents(self) -> Iterator[Document]:
        """Every document, in the same order and with the same text each time.

        The pieces of a document are read before the next document is asked for. Raises UserError
        where the source cannot be fetched or read.
        """

    @abstractmethod
    def facts(self) -> dict[str, Any]:
        """More keys for the manifest, as values for JSON, such as the archive's SHA-256.

        Called after all documents have been read. No key may be one of the manifest's own fields,
        except `left_out`: it counts, by reason, what of the source is in no document.
        `entropy_bits_per_byte` is the exact entropy of a synthetic source, by which models are
        measured.
        """
