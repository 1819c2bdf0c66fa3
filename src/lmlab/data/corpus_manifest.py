"""The typed form of a corpus's manifest.json: what the corpus is, and what became of its text."""

from pathlib import Path
from typing import Any, Self

from pydantic import model_validator

from lmlab.core.files import Record, read_record

FILE = "manifest.json"


class Losses(Record):
    """How many characters cleaning read, and how many it changed, by what became of them.

    Line ends are in none of the last three.
    """

    characters: int
    replaced: int
    invisible: int
    dropped: int


class Cleaning(Losses):
    """The losses, and how many documents cleaning left empty or blank."""

    emptied_documents: int


class Change(Record):
    """A character that cleaning changed."""

    character: str
    code_point: str
    became: str
    """What replaces it; empty where nothing does."""
    count: int


class SplitSize(Record):
    """How much text a split has."""

    documents: int
    characters: int
    bytes: int
    """In UTF-8."""
    different_characters: int


class Split(SplitSize):
    """A split's size and the hash of its Parquet file."""

    sha256: str


class Documents(Record):
    """A number of documents and the characters in them."""

    documents: int
    characters: int


class EqualDocuments(Record):
    """Documents with exactly the text of another one."""

    within: dict[str, Documents]
    """By split: those that repeat an earlier document of the same split."""
    across: dict[str, Documents]
    """By pair, such as `validation in train`: those of the first split that are in the second."""


class Copied(Record):
    """How much of a held-out split is in train verbatim."""

    characters: int
    checked: int
    """Of how many characters: all, or those of a sample."""


class Verbatim(Record):
    """Characters of the held-out splits within runs of `run_characters` or more that train has
    too.
    """

    run_characters: int
    validation: Copied
    test: Copied

    def of(self, split: str) -> Copied:
        """That of "validation" or "test"."""
        return {"validation": self.validation, "test": self.test}[split]


class CorpusManifest(Record):
    """A corpus's manifest.json: its keys are these fields in order, with each fact as a key."""

    corpus: str
    source: str
    licence: str
    facts: dict[str, Any]
    """What `Corpus.facts` returned, without `left_out`; their keys follow `licence`."""
    left_out: dict[str, int]
    """What of the source is in no document, counted by reason."""
    split: str
    """How it was split: `tail` or `document`."""
    splits: dict[str, Split]
    equal_documents: EqualDocuments
    verbatim: Verbatim
    ascii: bool
    cleaning: Cleaning
    cleaned: list[Change]
    """The characters that cleaning changed, most frequent first."""

    @property
    def entropy_bits_per_byte(self) -> float | None:
        """The exact entropy of a synthetic source; None for any other."""
        return self.facts.get("entropy_bits_per_byte")

    @model_validator(mode="before")
    @classmethod
    def _gather_facts(cls, value: Any) -> Any:
        """Every unknown key of the file is a fact."""
        if not isinstance(value, dict) or "facts" in value:
            return value
        known = {key: inner for key, inner in value.items() if key in cls.model_fields}
        facts = {key: inner for key, inner in value.items() if key not in cls.model_fields}
        return {**known, "facts": facts}

    def record(self) -> dict[str, Any]:
        values: dict[str, Any] = {}
        for key, value in super().record().items():
            if key == "facts":
                values.update(value)
            else:
                values[key] = value
        return values

    @classmethod
    def read(cls, folder: Path) -> Self:
        """The manifest in a corpus's folder. Raises UserError where it is missing or damaged."""
        return read_record(folder / FILE, cls, made_by="download")
