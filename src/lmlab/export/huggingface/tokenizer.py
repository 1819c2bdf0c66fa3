"""A tokenizer of the lab as tokenizer.json, which the library tokenizers and all that build on it
read.

Bytes are written as that library's ByteLevel writes them, one printable character for each. BOS is
put before every text, as before every document of the corpus, and no text is ever read as BOS: it
is no added token in tokenizer.json, and tokenizer_config.json has `split_special_tokens`.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lmlab.core.errors import UserError
from lmlab.data import pretokens
from lmlab.data.tokenizers.base import Tokenizer, from_readable, part_name
from lmlab.data.tokenizers.bpe import SEPARATOR
from lmlab.export.byte_level import spelled

BOS = "<|document|>"
UNSEEN = "<|unseen|>"
SPELLING = "spelling_lmlab.py"
"""The module beside tokenizer.json that spells unknown characters, which that file cannot."""
SPELLING_CODE = Path(__file__).with_name("spelling.py.txt")


def names(tokenizer: Tokenizer) -> list[str]:
    """What each id is called in tokenizer.json."""
    if part_name(tokenizer) == "character":
        found = [piece.decode("utf-8", "surrogatepass") for piece in tokenizer.token_bytes]
        found[tokenizer.state()["unseen"]] = UNSEEN
    else:
        found = [spelled(piece) for piece in tokenizer.token_bytes]
    bos = BOS
    while bos in found:
        bos = f"<{bos}>"
    found[tokenizer.bos] = bos
    return found


def tokenizer_json(tokenizer: Tokenizer) -> dict[str, Any]:
    """The content of tokenizer.json. Raises UserError for a tokenizer that it cannot describe."""
    name = part_name(tokenizer)
    if name not in _MODELS:
        raise UserError(
            f"tokenizer.name: {name} has no counterpart in tokenizer.json; `lmlab export onnx`"
            " writes its own"
        )
    called = names(tokenizer)
    is_bytes = name != "character"
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [],
        "normalizer": None,
        "pre_tokenizer": _pre_tokenizer(name),
        "post_processor": _bos_first(called[tokenizer.bos], tokenizer.bos),
        "decoder": dict(_BYTE_LEVEL) if is_bytes else {"type": "Fuse"},
        "model": _MODELS[name](tokenizer.state(), called),
    }


def tokenizer_config(
    tokenizer: Tokenizer, context: int, padding_side: str = "left"
) -> dict[str, Any]:
    """The content of tokenizer_config.json."""
    bos = names(tokenizer)[tokenizer.bos]
    return {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": bos,
        "eos_token": bos,
        "pad_token": bos,
        "split_special_tokens": True,
        "clean_up_tokenization_spaces": False,
        "model_max_length": context,
        "padding_side": padding_side,
    }


_BYTE_LEVEL = {
    "type": "ByteLevel",
    "add_prefix_space": False,
    "trim_offsets": False,
    "use_regex": False,
}


def _pre_tokenizer(name: str) -> dict[str, Any] | None:
    if name == "character":
        return None
    if name == "byte":
        return _BYTE_LEVEL
    split = {
        "type": "Split",
        "pattern": {"Regex": pretokens.PATTERN},
        "behavior": "Isolated",
        "invert": False,
    }
    return {"type": "Sequence", "pretokenizers": [split, _BYTE_LEVEL]}


def _bos_first(bos: str, token: int) -> dict[str, Any]:
    """Puts BOS before a text, and before each of two."""
    special = {"SpecialToken": {"id": bos, "type_id": 0}}
    first = {"Sequence": {"id": "A", "type_id": 0}}
    second = {"Sequence": {"id": "B", "type_id": 0}}
    return {
        "type": "TemplateProcessing",
        "single": [special, first],
        "pair": [special, first, special, second],
        "special_tokens": {bos: {"id": bos, "ids": [token], "tokens": [bos]}},
    }


def _merging(
    called: list[str],
    merges: list[list[str]],
    unknown: str | None = None,
    whole_words: bool = False,
) -> dict[str, Any]:
    """A model that merges; with `whole_words`, a word that has an id gets it at once."""
    return {
        "type": "BPE",
        "dropout": None,
        "unk_token": unknown,
        "continuing_subword_prefix": None,
        "end_of_word_suffix": None,
        "fuse_unk": False,
        "byte_fallback": False,
        "ignore_merges": whole_words,
        "vocab": {name: number for number, name in enumerate(called)},
        "merges": merges,
    }


def _bpe(state: Mapping[str, Any], called: list[str]) -> dict[str, Any]:
    halves = [merge.split(SEPARATOR) for merge in state["merges"]]
    return _merging(called, [[spelled(from_readable(half)) for half in pair] for pair in halves])


def _unigram(state: Mapping[str, Any], called: list[str]) -> dict[str, Any]:
    """BOS needs a score, which is never used: no pre-token spells it."""
    scores = {
        spelled(from_readable(piece)): score for piece, score in state["log_probabilities"].items()
    }
    return {
        "type": "Unigram",
        "unk_id": None,
        "byte_fallback": False,
        "vocab": [[name, scores.get(name, -1e3)] for name in called],
    }


def _byte(state: Mapping[str, Any], called: list[str]) -> dict[str, Any]:
    return _merging(called, [])


def _character(state: Mapping[str, Any], called: list[str]) -> dict[str, Any]:
    return _merging(called, [], unknown=UNSEEN)


def _word(state: Mapping[str, Any], called: list[str]) -> dict[str, Any]:
    return _merging(called, [], whole_words=True)


_MODELS = {
    "bpe": _bpe,
    "byte": _byte,
    "character": _character,
    "unigram": _unigram,
    "word": _word,
}
