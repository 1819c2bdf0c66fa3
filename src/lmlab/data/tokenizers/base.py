"""What a tokenizer is, and how one is saved as a single JSON file a person can read."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable
from itertools import chain
from pathlib import Path
from typing import Annotated, Any, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from lmlab.core.errors import UserError
from lmlab.core.files import read_json, seal, write_json
from lmlab.core.params import Params
from lmlab.core.registry import Choice, OneOf, find
from lmlab.data import pretokens

Ids = NDArray[np.unsignedinteger[Any]]
"""A one-dimensional array of token ids."""


FITTED = "data/corpus"
"""The value of `tokenizer.from` with which the tokenizer is fitted to the corpus."""


class TokenizerParams(Params):
    """The section `tokenizer`."""

    name: Annotated[str, OneOf("tokenizers")]
    from_: str = Field(alias="from")
    """FITTED, or the file that holds the tokenizer. DVC watches what stands here, so it is never
    empty.
    """

    @property
    def given(self) -> Path | None:
        """The file to take the tokenizer from; None: it is fitted."""
        return None if self.from_ == FITTED else Path(self.from_)


class SizedOptions(Params):
    """Options of a tokenizer whose vocabulary is as large as one asks for, if the text has enough
    to fill it.
    """

    vocabulary_size: int = Field(ge=257)
    """How many ids, the 256 bytes and the BOS token included."""


class Tokenizer(ABC):
    """Text to ids and back. Final classes: fitted by `fit`, rebuilt by `from_state`.

    Every id but `bos` stands for text. `bos` is the one special token, put before each document and
    never part of the text, whatever the text spells. It keeps its id for good: the last one when a
    tokenizer is fitted, with text on both sides once the vocabulary has grown. A model over this
    tokenizer has `vocabulary_size` outputs.
    """

    token_bytes: list[bytes]
    """The raw bytes each id stands for; empty for those that stand for no text of their own."""

    bos: int
    """The id of the BOS token."""

    @classmethod
    @abstractmethod
    def fit(cls, options: Any, texts: Iterable[str]) -> Self:
        """Learn the vocabulary from the train split's texts, given as a stream."""

    @abstractmethod
    def grown(self, texts: Iterable[str], tokens: int) -> Self:
        """A tokenizer with at most `tokens` ids more, learned from a stream of texts; no old id
        changes its meaning.

        The new ids come after all old ones, the BOS token's among them. Texts that offer nothing
        new add none.
        """

    @abstractmethod
    def encode(self, text: str) -> Ids:
        """The ids of any text, known characters or not; without the BOS token."""

    @abstractmethod
    def decode(self, ids: Ids) -> str:
        """The text of any ids, the inverse of `encode`; what no text gives becomes U+FFFD, the BOS
        token nothing.
        """

    @abstractmethod
    def state(self) -> dict[str, Any]:
        """What was fitted, as plain values for JSON; `special` gives the ids of special tokens by
        name.
        """

    @classmethod
    @abstractmethod
    def from_state(cls, state: dict[str, Any]) -> Self:
        """The inverse of `state`."""

    @property
    def vocabulary_size(self) -> int:
        """How many ids there are, the BOS token included."""
        return len(self.token_bytes)


def fit(choice: Choice, texts: Iterable[str]) -> Tokenizer:
    """Fit the chosen tokenizer. Raises UserError where it needs text and there is none."""
    tokenizer: Tokenizer = choice.part.fit(choice.options, texts)
    return tokenizer


def made(params: TokenizerParams, choice: Choice, texts: Iterable[str]) -> Tokenizer:
    """The tokenizer that a section asks for: fitted to the texts, or read from a file. Raises
    UserError.
    """
    return check_given(params, choice) or fit(choice, texts)


def check_given(params: TokenizerParams, choice: Choice) -> Tokenizer | None:
    """The tokenizer of the file that the section names; None where it names none.

    Raises UserError where there is no such file, where it is damaged and where it is of another
    kind than `choice`.
    """
    if params.given is None:
        return None
    key = "params.yaml: tokenizer.from"
    if not params.from_:
        raise UserError(
            f"{key} is empty; name {FITTED} to fit a tokenizer, or a file such as `lmlab grow`"
            " writes"
        )
    tokenizer = load_given(params.given, key)
    if (kind := kind_of(tokenizer)) != choice.name:
        raise UserError(
            f"{key}: {params.given} holds a {kind} tokenizer, no {choice.name}; set"
            f" tokenizer.name to {kind}"
        )
    return tokenizer


def load_given(path: Path, key: str) -> Tokenizer:
    """A tokenizer from a file that a person has named by `key`. Raises UserError."""
    if not path.is_file():
        raise UserError(
            f"{key}: there is no file {path}; name a tokenizer.json, or what `lmlab grow` has"
            " written"
        )
    try:
        return load(path)
    except UserError:
        raise UserError(
            f"{key}: {path} is no tokenizer, or damaged; name a tokenizer.json, or make it again"
        ) from None


def kind_of(tokenizer: Tokenizer) -> str:
    """The name of the part that a tokenizer is of."""
    return type(tokenizer).__module__.rpartition(".")[2]


def save(choice: Choice, tokenizer: Tokenizer, path: Path) -> None:
    """Write `tokenizer.json`."""
    write(choice.name, tokenizer, path)


def write(name: str, tokenizer: Tokenizer, path: Path) -> None:
    """Write a tokenizer of the part `name`, however it came about, with a hash of itself."""
    write_json(
        path,
        seal(
            {"tokenizer": name, "vocabulary_size": tokenizer.vocabulary_size, **tokenizer.state()}
        ),
    )


def load(path: Path) -> Tokenizer:
    """Read `tokenizer.json`. Raises UserError when it is missing, damaged or of a tokenizer that is
    no more.
    """
    saved = read_json(path, made_by="tokenizer")
    try:
        part, _ = find("tokenizers", saved["tokenizer"])
        tokenizer: Tokenizer = part.from_state(saved)
        intact = (
            tokenizer.vocabulary_size == saved["vocabulary_size"]
            and tokenizer.token_bytes[saved["special"]["bos"]] == b""
        )
    except (AttributeError, IndexError, KeyError, TypeError, ValueError):
        intact = False
    if not intact:
        raise UserError(f"{path} is damaged; run `dvc repro --force tokenizer` to make it again")
    return tokenizer


def report(
    tokenizer: Tokenizer, texts: Iterable[str], options: Params | None = None
) -> dict[str, Any]:
    """Vocabulary and compression over a stream of texts: bytes and characters per token.

    With the options it was fitted with, it also says how many ids were asked for, where that can be
    chosen.
    """
    tokens = size = characters = 0
    seen = np.zeros(tokenizer.vocabulary_size, dtype=np.int64)
    for text in texts:
        ids = tokenizer.encode(text)
        tokens += len(ids)
        size += len(text.encode("utf-8"))
        characters += len(text)
        seen += np.bincount(ids, minlength=tokenizer.vocabulary_size)
    asked = (
        {"vocabulary_size_asked": options.vocabulary_size}
        if isinstance(options, SizedOptions)
        else {}
    )
    return {
        "vocabulary_size": tokenizer.vocabulary_size,
        **asked,
        "used": int((seen > 0).sum()),
        "tokens": tokens,
        "bytes": size,
        "characters": characters,
        "bytes_per_token": size / tokens,
    }


BYTES = [bytes([value]) for value in range(256)]
"""The first ids of every tokenizer that spells what it does not know in bytes."""


def with_bos(pieces: list[bytes], bos: int) -> list[bytes]:
    """The bytes of each id: those of the pieces in order, with the BOS token among them, after the
    256 bytes.
    """
    if bos < 256:
        raise ValueError("a BOS token among the bytes")
    return [*pieces[:bos], b"", *pieces[bos:]]


def joined(token_bytes: list[bytes], ids: Ids) -> str:
    """The text of ids that are nothing but bytes one after another."""
    return b"".join(map(token_bytes.__getitem__, ids.tolist())).decode("utf-8", "replace")


def readable(piece: bytes) -> str:
    """Bytes as a string for JSON, a character each: ASCII as it is, any other byte as its sign in
    Latin-1.
    """
    return piece.decode("latin-1")


def from_readable(text: str) -> bytes:
    """The inverse of `readable`. Raises ValueError for what it cannot have written."""
    return text.encode("latin-1")


class Spellings(dict[str, list[int]]):
    """The ids of pre-tokens, each found by `spell` when it is first met and remembered from then
    on.
    """

    MOST = 1 << 20

    def __init__(self, spell: Callable[[bytes], list[int]]) -> None:
        super().__init__()
        self.spell = spell

    def __missing__(self, pretoken: str) -> list[int]:
        if len(self) >= self.MOST:
            self.clear()  # so that no corpus, however varied, fills the memory
        self[pretoken] = ids = self.spell(pretoken.encode("utf-8"))
        return ids

    def encode(self, text: str) -> Ids:
        """The ids of a text, pre-token by pre-token."""
        return np.fromiter(
            chain.from_iterable(map(self.__getitem__, pretokens.split(text))), dtype=np.uint32
        )
