"""The text that an ejected file reads, and how it becomes token ids there: each tokenizer's encoder
in its slow, obvious form.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from lmlab.data import documents, pretokens
from lmlab.data.shards import Shards
from lmlab.data.tokenizers import unigram
from lmlab.data.tokenizers.base import Tokenizer, readable

IMPORTS = ("import re", "from functools import cache")
"""What the encoders of words need."""
CHARACTERS = '''
ID_OF = {token.decode("utf-8", "surrogatepass"): id_ for id_, token in enumerate(TOKENS) if token}
UNSEEN = TOKENS.index(b"")


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
'''
BYTES = '''
def encode(text):
    """Its bytes."""
    return list(text.encode("utf-8", "surrogatepass"))
'''
WORDS = f'''
ID_OF = {{token: id_ for id_, token in enumerate(TOKENS) if token}}
SPLIT = re.compile({pretokens.PATTERN!r})


def encode(text):
    """The ids of a text, word by word; no token crosses the borders of words."""
    return [id_ for word in SPLIT.findall(text) for id_ in spell(word.encode())]
'''
SPELL_BPE = '''
@cache
def spell(word):
    """Of all neighbours those whose union has the lowest id are merged, again and again."""
    parts = [bytes([byte]) for byte in word]
    while len(parts) > 1:
        ids = [ID_OF.get(left + right, VOCABULARY) for left, right in zip(parts, parts[1:])]
        if min(ids) == VOCABULARY:
            break
        at = ids.index(min(ids))
        parts[at : at + 2] = [parts[at] + parts[at + 1]]
    return [ID_OF[part] for part in parts]
'''
SPELL_UNIGRAM = f'''
SCORES = dict(zip(ID_OF, DATA["scores"]))


@cache
def spell(word):
    """The pieces with the highest sum of log probabilities (Viterbi 1967)."""
    best, begins = [0.0] + [-float("inf")] * len(word), [0] * (len(word) + 1)
    for end in range(1, len(word) + 1):
        for start in range(max(0, end - {unigram.LONGEST}), end):
            score = SCORES.get(word[start:end])
            if score is not None and best[start] + score > best[end]:
                best[end], begins[end] = best[start] + score, start
    ids, end = [], len(word)
    while end:
        ids.insert(0, ID_OF[word[begins[end] : end]])
        end = begins[end]
    return ids
'''
SPELL_WORD = '''
@cache
def spell(word):
    """Its id, or its bytes where it has none."""
    return [ID_OF[word]] if word in ID_OF else list(word)
'''
STREAM = '''

def stream(split):
    """The ids of a split, BOS before each document."""
    return [id_ for text in DATA[split] for id_ in (BOS, *encode(text))]
'''
ENCODERS = {
    "character": CHARACTERS,
    "byte": BYTES,
    "bpe": f"{WORDS}\n{SPELL_BPE}",
    "unigram": f"{WORDS}\n{SPELL_UNIGRAM}",
    "word": f"{WORDS}\n{SPELL_WORD}",
}
STREAM_OF_IDS = '''
def stream(split):
    """The ids of a split, BOS before each document, as the lab's tokenizer made them."""
    return DATA[split]
'''
"""For a tokenizer that is not written out above."""


def encoder(tokenizer: Tokenizer) -> tuple[str, tuple[str, ...]]:
    """How text becomes ids in the file, and the imports that it needs."""
    code = ENCODERS.get(_name(tokenizer))
    if code is None:
        return STREAM_OF_IDS, ()
    return f"{code}{STREAM}", IMPORTS if "spell" in code else ()


def content(shards: Shards, tokenizer: Tokenizer, corpus: Path) -> dict[str, Any]:
    """The texts of both splits, or their ids for a tokenizer that is not written out."""
    values: dict[str, Any] = {
        "row_groups": [group.length for group in shards.row_groups("train")],
        "tokens": [readable(token) for token in tokenizer.token_bytes],
    }
    for split in ("train", "validation"):
        if _name(tokenizer) in ENCODERS:
            values[split] = list(_texts(corpus / f"{split}.parquet"))
        else:
            values[split] = shards.stream(split).tolist()
    if isinstance(tokenizer, unigram.Unigram):
        values["scores"] = list(tokenizer.scores.values())
    return values


def _name(tokenizer: Tokenizer) -> str:
    """The part's name."""
    return type(tokenizer).__module__.rpartition(".")[2]


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
