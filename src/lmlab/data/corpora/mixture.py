"""Two corpora in one, mixed text by text, for a model that is to learn the one and keep the other.

Going on with a part of the earlier text among the new is the plain remedy against forgetting
("rehearsal": Robins 1995).
"""

from collections.abc import Iterator
from typing import Annotated, Any

from pydantic import Field

from lmlab.core.params import Params
from lmlab.core.registry import Choice, OneOf
from lmlab.data.corpora.base import Corpus, Document


class Options(Params):
    """Which corpora, and how much of each."""

    first: Annotated[str, OneOf("corpora")]
    second: Annotated[str, OneOf("corpora")]
    share: float = Field(gt=0, lt=1)


class Mixture(Corpus):
    """The next text is from `second` while that has less than `share` of the characters so far.

    Where the corpus whose turn it is has no more text, the mixture ends; what the other one still
    has is counted as left out.
    """

    def __init__(self, options: Options, first: Choice, second: Choice) -> None:
        self.share = options.share
        self.names = [first.name, second.name]
        self.corpora: list[Corpus] = [first.build(), second.build()]
        self.source = " and ".join(corpus.source for corpus in self.corpora)
        self.licence = "; ".join(corpus.licence for corpus in self.corpora)
        self.characters = [0, 0]
        self.left_out: dict[str, int] = {}

    def documents(self) -> Iterator[Document]:
        self.characters, self.left_out = [0, 0], {}
        texts = [corpus.documents() for corpus in self.corpora]
        while True:
            turn = int(self.characters[1] < self.share * (sum(self.characters) + 1))
            document = next(texts[turn], None)
            if document is None:
                break
            name = f"{self.names[turn]}/{document.name}"
            yield Document(name, self._counted(document, turn))
        rest = sum(_read(document) for document in texts[1 - turn])
        if rest:
            reason = f"characters of {self.names[1 - turn]} when {self.names[turn]} had ended"
            self.left_out[reason] = rest

    def _counted(self, document: Document, turn: int) -> Iterator[str]:
        for piece in document.pieces:
            self.characters[turn] += len(piece)
            yield piece

    def facts(self) -> dict[str, Any]:
        left_out = dict(self.left_out)
        mixed = {}
        for name, corpus, characters in zip(self.names, self.corpora, self.characters, strict=True):
            facts = corpus.facts()
            for reason, count in facts.pop("left_out", {}).items():
                left_out[f"{reason} ({name})"] = count
            mixed[name] = {"characters": characters, **facts}
        return {"mixed": mixed, "left_out": left_out}


def _read(document: Document) -> int:
    """The characters of a document."""
    return sum(len(piece) for piece in document.pieces)
