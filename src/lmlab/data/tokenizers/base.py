"""What a tokenizer is, and how one is saved as a single, human-readable JSON file."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable
from itertools import chain
from pathlib import Path
from typing import Annotated, Any, ClassVar, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from lmlab.core.errors import UserError
from lmlab.core.files import Record, read_json, seal, write_json
from lmlab.core.params import Params
from lmlab.core.registry import Choice, OneOf, find
from lmlab.data import pretokens

Ids = NDArray[np.unsignedinteger[Any]]
"""A one-dimensional array of token ids, shape (T,)."""


FITTED = "data/corpus"
"""The value of `tokenizer.from` that fits the tokenizer to the corpus."""


class TokenizerParams(Params):
    """The section `tokenizer`."""

    name: Annotated[str, OneOf("tokenizers")]
    from_: str = Field(alias="from")
    """FITTED, or the tokenizer's file. It is a dependency of DVC's stage and so never empty."""

    @property
    def file(self) -> Path | None:
        """The file to load the tokenizer from; None where it is to be fitted."""
        return None if self.from_ == FITTED else Path(self.from_)

    def taken_from(self, file: Path) -> "TokenizerParams":
        """A copy that takes the tokenizer from a file."""
        return self.model_copy(update={"from_": str(file)})


class SizedOptions(Params):
    """Options of a tokenizer with a chosen vocabulary size, which text that is too short may not
    reach.

    Its first 256 ids are the bytes.
    """

    vocabulary_size: int = Field(ge=257)
    """How many ids, the 256 bytes and the BOS token included."""


class Tokenizer(ABC):
    """Text to ids and back. Concrete classes are final, made by `fit`, `grown` and `from_state`.

    A tokenizer never changes: `grown` returns another one. Every id but `bos` is for text. `bos` is
    the one special token: it precedes each document and is never part of the text, whatever the
    text spells. Its id never changes: it is the last one when a tokenizer is fitted and has ids of
    text on both sides once the vocabulary has grown. A model over this tokenizer has
    `vocabulary_size` outputs.
    """

    grows: ClassVar[bool] = True
    """Whether `grown` can add tokens. A class sets False where there is nothing to add, as with
    bytes; its `grown` returns the tokenizer itself.
    """

    token_bytes: list[bytes]
    """The bytes that each id decodes to; empty for `bos` and for an id that is no text on its own.

    For text of characters that `fit` has seen, the bytes of its ids joined are the text in UTF-8,
    and the ids of two texts joined decode to the two texts joined.
    """

    bos: int
    """The id of the BOS token."""

    @classmethod
    @abstractmethod
    def fit(cls, options: Any, texts: Iterable[str]) -> Self:
        """Learn the vocabulary from the texts of the train split, a stream that is read once.

        The same texts always give the same tokenizer. Any text suffices, be it one character or all
        control characters; without any text, raise UserError or learn nothing.
        """

    @abstractmethod
    def grown(self, texts: Iterable[str], tokens: int) -> Self:
        """A tokenizer of the same class with up to `tokens` more ids, learned from a stream of
        texts.

        Every old id keeps its meaning and its bytes. The new ids follow the old ones, `bos`
        included, and each has bytes that no other id has. Texts with enough that is new add at
        least one id, unless `grows` is False, and are then encoded in fewer ids. Without text, or
        with `tokens` 0, nothing changes. The same texts always give the same result, and this
        tokenizer stays as it is.
        """

    @abstractmethod
    def encode(self, text: str) -> Ids:
        """The ids of any text, shape (T,), unsigned; none for an empty text, and never `bos`.

        Raises nothing: characters unknown to the vocabulary are spelled out, a half surrogate
        becomes U+FFFD. What an id depends on is bounded: the ids of a long text repeated four times
        are those of one repetition four times, except for a few at the seams.
        """

    @abstractmethod
    def decode(self, ids: Ids) -> str:
        """The text of any ids, with nothing for `bos`; of those that `encode` gives, the same text.

        Raises nothing for ids below `vocabulary_size`: what no text is encoded as becomes U+FFFD,
        so that the text can always be written in UTF-8.
        """

    @abstractmethod
    def state(self) -> dict[str, Any]:
        """What was fitted, as plain values for JSON; `special` is the id of each special token by
        name.
        """

    @classmethod
    @abstractmethod
    def from_state(cls, state: dict[str, Any]) -> Self:
        """The inverse of `state`.

        For a damaged state, such as one with any value of another type or with `bos` in a place
        where this class never puts it, raise one of AttributeError, IndexError, KeyError, TypeError
        and ValueError: `load` turns them into a UserError.
        """

    @property
    def vocabulary_size(self) -> int:
        """How many ids there are, the BOS token included."""
        return len(self.token_bytes)


class TokenizerReport(Record):
    """A tokenizer's report.json: its vocabulary and how well it compresses the train split."""

    vocabulary_size: int
    vocabulary_size_asked: int | None = None
    """Where the options set one; absent from the file otherwise."""
    used: int
    """How many different ids the text has."""
    tokens: int
    bytes: int
    """Of the text, in UTF-8."""
    characters: int
    bytes_per_token: float

    def record(self) -> dict[str, Any]:
        return self.model_dump(exclude_none=True)


def fit(choice: Choice, texts: Iterable[str]) -> Tokenizer:
    """Fit the chosen tokenizer. Raises UserError where it needs text and there is none."""
    tokenizer: Tokenizer = choice.part.fit(choice.options, texts)
    return tokenizer


def load_or_fit(params: TokenizerParams, choice: Choice, texts: Iterable[str]) -> Tokenizer:
    """The tokenizer that the section asks for: loaded from its file, or fitted to the texts.

    Raises UserError as `load_chosen` and `fit` do.
    """
    return load_chosen(params, choice) or fit(choice, texts)


def load_chosen(params: TokenizerParams, choice: Choice) -> Tokenizer | None:
    """The tokenizer in the file that the section names; None where it names none.

    Raises UserError where the file is missing or damaged, or is of another part than `choice`.
    """
    if params.file is None:
        return None
    key = "params.yaml: tokenizer.from"
    if not params.from_:
        raise UserError(
            f"{key} is empty; name {FITTED} to fit a tokenizer, or a file such as `lmlab grow`"
            " writes"
        )
    tokenizer = load_named(params.file, key)
    name = part_name(tokenizer)
    if name != choice.name:
        raise UserError(
            f"{key}: {params.file} holds a {name} tokenizer, no {choice.name}; set"
            f" tokenizer.name to {name}"
        )
    return tokenizer


def load_named(path: Path, key: str) -> Tokenizer:
    """Load a tokenizer from a file that the user named by `key`.

    Raises UserError, naming `key`, where there is none or it is damaged.
    """
    if not path.is_file():
        raise UserError(
            f"{key}: there is no file {path}; name a tokenizer.json, or what `lmlab grow` wrote"
        )
    try:
        return load(path)
    except UserError:
        raise UserError(
            f"{key}: {path} is no tokenizer, or damaged; name a tokenizer.json, or make it again"
        ) from None


def part_name(tokenizer: Tokenizer) -> str:
    """The name of a tokenizer's part."""
    return type(tokenizer).__module__.rpartition(".")[2]


def save(choice: Choice, tokenizer: Tokenizer, path: Path) -> None:
    """Write `tokenizer.json`."""
    write(choice.name, tokenizer, path)


def write(name: str, tokenizer: Tokenizer, path: Path) -> None:
    """Write a tokenizer of the part `name`, fitted or grown, with a hash of its contents."""
    header = {"tokenizer": name, "vocabulary_size": tokenizer.vocabulary_size}
    write_json(path, seal({**header, **tokenizer.state()}))


def load(path: Path, made_by: str = "tokenizer") -> Tokenizer:
    """Read `tokenizer.json`, which a stage has made. Raises UserError where it is missing, damaged
    or of a part that no longer exists.
    """
    saved = read_json(path, made_by=made_by)
    try:
        part, _ = find("tokenizers", saved["tokenizer"])
        tokenizer: Tokenizer = part.from_state(saved)
        same_size = tokenizer.vocabulary_size == saved["vocabulary_size"]
        intact = same_size and tokenizer.token_bytes[saved["special"]["bos"]] == b""
    except (AttributeError, IndexError, KeyError, TypeError, ValueError):
        intact = False
    if not intact:
        raise UserError(f"{path} is damaged; run `dvc repro --force {made_by}` to make it again")
    return tokenizer


def report(
    tokenizer: Tokenizer, texts: Iterable[str], options: Params | None = None
) -> TokenizerReport:
    """Encode a stream of texts; report the vocabulary and the compression.

    With the options that it was fitted with, also the vocabulary size asked for, where they have
    one.
    """
    tokens = size = characters = 0
    occurrences = np.zeros(tokenizer.vocabulary_size, dtype=np.int64)
    for text in texts:
        ids = tokenizer.encode(text)
        tokens += len(ids)
        size += len(text.encode("utf-8"))
        characters += len(text)
        occurrences += np.bincount(ids, minlength=tokenizer.vocabulary_size)
    asked = options.vocabulary_size if isinstance(options, SizedOptions) else None
    return TokenizerReport(
        vocabulary_size=tokenizer.vocabulary_size,
        vocabulary_size_asked=asked,
        used=int((occurrences > 0).sum()),
        tokens=tokens,
        bytes=size,
        characters=characters,
        bytes_per_token=size / tokens,
    )


BYTES = [bytes([value]) for value in range(256)]
"""The first 256 ids of a tokenizer that spells unknown text in bytes."""


def with_bos(pieces: list[bytes], bos: int) -> list[bytes]:
    """The bytes of each id: the pieces in order, with the BOS token inserted as the id `bos`.

    Raises ValueError where that is among the 256 bytes.
    """
    if bos < 256:
        raise ValueError("a BOS token among the bytes")
    return [*pieces[:bos], b"", *pieces[bos:]]


def joined(token_bytes: list[bytes], ids: Ids) -> str:
    """The text of the ids' bytes joined, with U+FFFD for invalid UTF-8."""
    pieces = [token_bytes[i] for i in ids.tolist()]
    return b"".join(pieces).decode("utf-8", "replace")


def readable(piece: bytes) -> str:
    """Bytes as a string for JSON: each byte as the character of that number, as in Latin-1."""
    return piece.decode("latin-1")


def from_readable(text: str) -> bytes:
    """The inverse of `readable`. Raises ValueError for a string that it never returns."""
    return text.encode("latin-1")


class Spellings(dict[str, list[int]]):
    """A cache of the ids of pre-tokens; `spell` computes them from a pre-token's bytes."""

    MOST = 1 << 20

    def __init__(self, spell: Callable[[bytes], list[int]]) -> None:
        super().__init__()
        self.spell = spell

    def __missing__(self, pretoken: str) -> list[int]:
        if len(self) >= self.MOST:
            self.clear()  # bounds the memory that a varied corpus needs
        ids = self.spell(pretoken.encode("utf-8"))
        self[pretoken] = ids
        return ids

    def encode(self, text: str) -> Ids:
        """The ids of a text, pre-token by pre-token."""
        spellings = map(self.__getitem__, pretokens.split(text))
        return np.fromiter(chain.from_iterable(spellings), dtype=np.uint32)
