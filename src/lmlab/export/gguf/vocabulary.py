"""Tokenizers as llama.cpp's metadata: which of them it tokenises by, and what differs.

llama.cpp splits text into pre-tokens by patterns in its own code, which a file can only name. None
of them is the lab's, so a tokenizer with pre-tokens is at best near: equal on most text, other ids
where blanks or signs stand in unusual places. Bytes and characters need no pre-tokens.

No text of a prompt becomes a special token: those are of the type UNDEFINED, which llama.cpp finds
neither in text nor prints, while their ids do what the metadata says.
"""

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from itertools import groupby
from typing import Any

from lmlab.core.errors import UserError
from lmlab.data.tokenizers.base import Tokenizer, part_name
from lmlab.data.tokenizers.bpe import BPE
from lmlab.data.tokenizers.byte import Byte
from lmlab.data.tokenizers.character import Character
from lmlab.data.tokenizers.unigram import Unigram
from lmlab.data.tokenizers.word import Word
from lmlab.export.byte_level import spelled

UNDEFINED, NORMAL, USER_DEFINED = 0, 1, 4
"""Types of token: neither read nor written, usual, found in the text before anything else."""
BOS, UNSEEN = "<|document|>", "<|unseen|>"
SPACE = "\u2581"
"""What llama.cpp's unigram model has in place of a space, and takes for one in a text."""
NEVER = f"{BOS} {BOS}"
"""A merge of what no text is split into: llama.cpp refuses a list without any."""
NO_PATTERN_NEEDED = "trillion"
"""Pre-tokens where nothing is merged within them; named for a pattern that llama.cpp applies
without std::regex, which overflows the stack on long texts, and without removing spaces.
"""
NEAREST_PATTERN = "gpt-4o"
"""Of llama.cpp's patterns the nearest to the lab's: `tests/test_gguf.py` measures how near."""
NEAREST_PATTERN_WHOLE = "llama-bpe"
"""The nearest of those with which a pre-token that is a token is taken whole."""
INSTEAD = "`lmlab export huggingface` carries it"
ONLY_NEAR = (
    "llama.cpp's tokenizer is only near the lab's: where blanks or signs stand in unusual places it"
    " cuts text otherwise"
)


@dataclass(frozen=True)
class Vocabulary:
    """A tokenizer in llama.cpp's terms."""

    metadata: Mapping[str, Any]
    """By key, without the prefix `tokenizer.ggml.`."""
    expected: Callable[[str], list[int]] | None
    """The ids of a text, BOS left out, that llama.cpp must give; None where it may differ."""
    spelled_out: Callable[[list[int]], int] = lambda ids: 0
    """How many of the lab's ids spell out what is no token of its own, where `expected` has other
    ids for that.
    """
    remarks: tuple[str, ...] = ()
    """What a user has to know of it."""


def carried(tokenizer: Tokenizer, nearest: bool) -> Vocabulary:
    """The tokenizer in llama.cpp's terms; with `nearest`, also one that it only comes near.

    Raises UserError, naming tokenizer.name, for any other.
    """
    if isinstance(tokenizer, Byte):
        return _bytes(tokenizer)
    if isinstance(tokenizer, Character):
        return _characters(tokenizer)
    name = part_name(tokenizer)
    if not nearest:
        raise UserError(
            f"tokenizer.name: {name} has no exact counterpart in llama.cpp, which splits text into"
            f" pre-tokens by patterns of its own; {INSTEAD}, or take what is nearest by"
            " --nearest-tokenizer"
        )
    if isinstance(tokenizer, BPE):
        return _merges(tokenizer)
    if isinstance(tokenizer, Word):
        return _words(tokenizer)
    if isinstance(tokenizer, Unigram):
        return _unigram(tokenizer)
    raise UserError(f"tokenizer.name: {name} has no counterpart in llama.cpp; {INSTEAD}")


def _special(tokenizer: Tokenizer) -> dict[str, Any]:
    """BOS begins a text and, generated, ends it, as documents follow each other in training."""
    return {
        "bos_token_id": tokenizer.bos,
        "eos_token_id": tokenizer.bos,
        "padding_token_id": tokenizer.bos,
        "add_bos_token": True,
        "add_eos_token": False,
        "add_space_prefix": False,
        "remove_extra_whitespaces": False,
    }


# ------------------------------------------------------------------ bytes and their merges


def _byte_level(tokenizer: Tokenizer, pattern: str) -> dict[str, Any]:
    """The metadata of byte-pair encoding without any pairs."""
    tokens = [spelled(piece) for piece in tokenizer.token_bytes]
    types = [NORMAL] * len(tokens)
    tokens[tokenizer.bos], types[tokenizer.bos] = BOS, UNDEFINED
    return {
        "model": "gpt2",
        "pre": pattern,
        "tokens": tokens,
        "token_type": types,
        "merges": [NEVER],
        **_special(tokenizer),
    }


def _bytes(tokenizer: Byte) -> Vocabulary:
    metadata = _byte_level(tokenizer, NO_PATTERN_NEEDED)
    return Vocabulary(metadata, lambda text: tokenizer.encode(text).tolist())


def _merges(tokenizer: BPE) -> Vocabulary:
    metadata = _byte_level(tokenizer, NEAREST_PATTERN)
    tokens = metadata["tokens"]
    merges = [f"{tokens[left]} {tokens[right]}" for left, right in tokenizer.merges]
    metadata["merges"] = merges or [NEVER]
    return Vocabulary(metadata, expected=None, remarks=(ONLY_NEAR,))


def _words(tokenizer: Word) -> Vocabulary:
    metadata = _byte_level(tokenizer, NEAREST_PATTERN_WHOLE)
    return Vocabulary(metadata, expected=None, remarks=(ONLY_NEAR,))


# ------------------------------------------------------------------ characters and pieces


def _scored(
    tokenizer: Tokenizer,
    tokens: list[str],
    scores: list[float],
    unknown: int,
    out_of_reach: Collection[int],
) -> dict[str, Any]:
    """The metadata of a unigram model: of all spellings of a text that with the highest sum of
    scores, an unknown character at ten less than the lowest score.
    """
    types = [UNDEFINED if i in out_of_reach else NORMAL for i in range(len(tokens))]
    if " " in tokens and SPACE in tokens:
        # two characters then; not always, since it takes time with the square of the spaces
        types[tokens.index(" ")] = USER_DEFINED
        written = tokens
    else:
        written = [token.replace(" ", SPACE) for token in tokens]
    return {
        "model": "t5",
        "tokens": written,
        "token_type": types,
        "scores": scores,
        "unknown_token_id": unknown,
        **_special(tokenizer),
    }


def _characters(tokenizer: Character) -> Vocabulary:
    tokens = [piece.decode("utf-8", "replace") for piece in tokenizer.token_bytes]
    tokens[tokenizer.bos], tokens[tokenizer.unseen] = BOS, UNSEEN
    out_of_reach = [tokenizer.bos, tokenizer.unseen]
    remarks = [
        "a character that is not in the vocabulary is spelled out in the lab; llama.cpp reads one,"
        f" or several in a row, as the single token {UNSEEN}"
    ]
    if SPACE not in tokens:
        remarks.append("llama.cpp reads U+2581 as a space")
    if "\0" in tokens:
        null = tokens.index("\0")
        tokens[null] = "<|null|>"  # llama.cpp ends a token's text there
        out_of_reach.append(null)
        remarks.append("U+0000 is such a character for llama.cpp, though not for the lab")
    metadata = _scored(tokenizer, tokens, [0.0] * len(tokens), tokenizer.unseen, out_of_reach)
    ids = {token: place for place, token in enumerate(tokens) if len(token) == 1}
    ids = {SPACE: ids.get(" ", tokenizer.unseen), " ": ids.get(SPACE, tokenizer.unseen), **ids}

    def expected(text: str) -> list[int]:
        found = [ids.get(character, tokenizer.unseen) for character in text]
        runs = ((i, len(list(run))) for i, run in groupby(found))
        counts = [(i, 1 if i == tokenizer.unseen else count) for i, count in runs]
        return [i for i, count in counts for _ in range(count)]

    def spelled_out(of_text: list[int]) -> int:
        return of_text.count(tokenizer.unseen) * (1 + tokenizer.digits)

    return Vocabulary(metadata, expected, spelled_out, tuple(remarks))


def _unigram(tokenizer: Unigram) -> Vocabulary:
    """Pieces that are no text by themselves, such as half a character, are out of reach."""
    texts = [_text_of(piece) for piece in tokenizer.token_bytes]
    out_of_reach = {i for i, text in enumerate(texts) if text is None}
    tokens = [text or f"<|{i}|>" for i, text in enumerate(texts)]
    tokens[tokenizer.bos] = BOS
    scores = [tokenizer.scores.get(piece, 0.0) for piece in tokenizer.token_bytes]
    unknown = tokenizer.token_bytes.index(b"\xff")  # which is in no text
    remark = (
        "a character that is no piece is spelled in bytes in the lab; llama.cpp reads it, or"
        " several in a row, as the byte FF"
    )
    metadata = _scored(tokenizer, tokens, scores, unknown, out_of_reach)
    return Vocabulary(metadata, expected=None, remarks=(ONLY_NEAR, remark))


def _text_of(piece: bytes) -> str | None:
    """The text of a piece; None where it has none, or a zero byte, which ends a token there."""
    if not piece or b"\0" in piece:
        return None
    try:
        return piece.decode("utf-8")
    except UnicodeDecodeError:
        return None
