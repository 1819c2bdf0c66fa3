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

IMPORTS = ("import re", "from functools import cache", "import itertools")
"""What may be needed to read the text."""
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

WINDOWS = '''
def windows():
    """The text in windows of CONTEXT + 1 tokens, shuffled anew in each epoch, without end."""
    for epoch in itertools.count():
        seed = [ORDER_SEED, epoch, 0]
        offset = int(np.random.default_rng(seed).integers(min(CONTEXT, len(TEXT) - CONTEXT)))
        number = (len(TEXT) - 1 - offset) // CONTEXT
        for window in np.random.default_rng([*seed, 1]).permutation(number):
            start = offset + window * CONTEXT
            yield TEXT[start : start + CONTEXT + 1]
'''
"""For a text of one row group."""
POOLS = '''
POOL = {pool}
"""About how many tokens are shuffled together."""


def pools(epoch):
    """The row groups of the text in a random order, in pools that are shuffled in memory."""
    rng = np.random.default_rng([ORDER_SEED, epoch])
    starts = np.cumsum([0, *DATA["row_groups"]])
    dealt, length = [[]], 0
    for index in rng.permutation(len(DATA["row_groups"])):
        if length >= POOL:
            dealt.append([])
            length = 0
        dealt[-1] += TEXT[starts[index] : starts[index + 1]]
        length += DATA["row_groups"][index]
    if len(dealt) > 1 and length < max(POOL // 2, CONTEXT + 1):
        dealt[-2:] = [dealt[-2] + dealt[-1]]
    return dealt


def windows():
    """The text in windows of CONTEXT + 1 tokens, shuffled anew in each epoch, without end."""
    for epoch in itertools.count():
        for number, ids in enumerate(pools(epoch)):
            seed = [ORDER_SEED, epoch, number]
            offset = int(np.random.default_rng(seed).integers(min(CONTEXT, len(ids) - CONTEXT)))
            whole = (len(ids) - 1 - offset) // CONTEXT
            for window in np.random.default_rng([*seed, 1]).permutation(whole):
                start = offset + window * CONTEXT
                yield ids[start : start + CONTEXT + 1]
'''


def windows(shards: Shards, context: int, pool_megatokens: float) -> str:
    """How the file cuts the text: shuffled by pools and row groups where there are several."""
    if len(list(shards.row_groups("train"))) == 1:
        return WINDOWS
    pool = max(int(pool_megatokens * 1e6), context + 1)
    return POOLS.replace("{pool}", str(pool))


def encoder(tokenizer: Tokenizer) -> tuple[str, tuple[str, ...]]:
    """How text becomes ids in the file, and the imports that it needs."""
    code = ENCODERS.get(_name(tokenizer))
    if code is None:
        return STREAM_OF_IDS, IMPORTS
    return f"{code}{STREAM}", IMPORTS


def content(shards: Shards, tokenizer: Tokenizer, corpus: Path) -> dict[str, Any]:
    """The texts of both splits, or their ids for a tokenizer that is not written out."""
    values: dict[str, Any] = {
        "tokens": [readable(token) for token in tokenizer.token_bytes],
    }
    lengths = [group.length for group in shards.row_groups("train")]
    if len(lengths) > 1:
        values["row_groups"] = lengths
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
