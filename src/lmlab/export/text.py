"""The text that an ejected file reads, and how it becomes token ids there."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from lmlab.data import documents
from lmlab.data.shards import Shards
from lmlab.data.tokenizers.base import Tokenizer
from lmlab.data.tokenizers.character import Character

ENCODERS = {
    "Character": '''
ID_OF = {character: id_ for id_, character in enumerate(DATA["characters"]) if character}
UNSEEN = DATA["characters"].index("")


def encode(text):
    """An id for each character; one that the train split lacks is spelled by its code point."""
    ids = []
    for character in text:
        if character in ID_OF:
            ids.append(ID_OF[character])
            continue
        digits, left = [], ord(character)
        while (UNSEEN + 1) ** len(digits) < 0x110000:
            left, digit = divmod(left, UNSEEN + 1)
            digits.insert(0, digit)
        ids += [UNSEEN, *digits]
    return ids
''',
    "Byte": '''
def encode(text):
    """Its bytes."""
    return list(text.encode("utf-8", "surrogatepass"))
''',
}
"""The tokenizers that are written out, by class."""
STREAM = '''

def stream(split):
    """The ids of a split, BOS before each document."""
    return [id_ for text in DATA[split] for id_ in (BOS, *encode(text))]
'''
STREAM_OF_IDS = '''
def stream(split):
    """The ids of a split, BOS before each document, as the lab's tokenizer made them."""
    return DATA[split]
'''


def content(shards: Shards, tokenizer: Tokenizer, corpus: Path) -> dict[str, Any]:
    """The texts of both splits, or their ids for a tokenizer that the file does not hold."""
    content: dict[str, Any] = {
        "row_groups": [group.length for group in shards.row_groups("train")],
        "tokens": [token.decode("utf-8", "replace") for token in tokenizer.token_bytes],
    }
    for split in ("train", "validation"):
        if type(tokenizer).__name__ in ENCODERS:
            content[split] = list(_texts(corpus / f"{split}.parquet"))
        else:
            content[split] = shards.stream(split).tolist()
    if isinstance(tokenizer, Character):
        content["characters"] = [*tokenizer.characters, "", "", *tokenizer.later]
    return content


def _texts(file: Path) -> Iterator[str]:
    """The documents of a split."""
    text = ""
    for _, part, piece in documents.read_parts(file):
        if part == 0 and text:
            yield text
            text = ""
        text += piece
    if text:
        yield text


def encoder(tokenizer: Tokenizer) -> str:
    """How text becomes ids in the file."""
    encoder = ENCODERS.get(type(tokenizer).__name__)
    return f"{encoder}{STREAM}" if encoder else STREAM_OF_IDS
