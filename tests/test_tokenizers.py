import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from small import PROJECT

from lmlab import params, parts
from lmlab.errors import UserError
from lmlab.tokenizers import base as tokenizers
from lmlab.tokenizers.base import Tokenizer

TREE = params.read(PROJECT / "params.yaml")
NAMES = parts.names("tokenizers")
KNOWN = "To be, or not to be: that is the question.\nWhether 'tis nobler — é ß 中 😀\n"
TINY = "a"

any_text = st.text(st.characters(exclude_categories=["Cs"]))
known_text = st.text(st.sampled_from(sorted(set(KNOWN))))


def fitted(name: str, text: str = KNOWN) -> Tokenizer:
    return tokenizers.fit(parts.choose(TREE, "tokenizers", name), [text[:10], text[10:], ""])


FITTED = [fitted(name, text) for name in NAMES for text in (KNOWN, TINY, "".join(map(chr, range(1, 255))))]
every_tokenizer = pytest.mark.parametrize("tokenizer", FITTED, ids=lambda made: f"{type(made).__name__}-{made.vocabulary}")


@every_tokenizer
@given(text=any_text)
def test_any_text_comes_back_whole(tokenizer: Tokenizer, text: str) -> None:
    ids = tokenizer.encode(text)
    assert ids.ndim == 1
    assert ids.dtype.kind == "u"
    assert (ids < tokenizer.vocabulary).all()
    assert (ids != tokenizer.document).all()
    assert tokenizer.decode(ids) == text


@every_tokenizer
def test_no_text_gives_no_ids(tokenizer: Tokenizer) -> None:
    assert len(tokenizer.encode("")) == 0
    assert tokenizer.decode(tokenizer.encode("")) == ""


@pytest.mark.parametrize("name", NAMES)
@given(text=known_text, more=known_text)
def test_the_bytes_of_known_text_are_those_of_its_tokens(name: str, text: str, more: str) -> None:
    tokenizer = fitted(name)
    ids = tokenizer.encode(text)
    assert b"".join(tokenizer.token_bytes[i] for i in ids) == text.encode()
    assert tokenizer.decode(np.concatenate([ids, tokenizer.encode(more)])) == text + more


@every_tokenizer
def test_the_document_token_is_the_last_and_stands_for_no_text(tokenizer: Tokenizer) -> None:
    assert tokenizer.document == tokenizer.vocabulary - 1 == len(tokenizer.token_bytes) - 1
    assert tokenizer.token_bytes[tokenizer.document] == b""
    document = np.array([tokenizer.document])
    ids = np.concatenate([document, tokenizer.encode("a"), document, tokenizer.encode("b")])
    assert tokenizer.decode(ids) == "ab"


@every_tokenizer
@given(data=st.data())
def test_any_ids_give_text_that_can_be_written(tokenizer: Tokenizer, data: st.DataObject) -> None:
    ids = data.draw(st.lists(st.integers(0, tokenizer.vocabulary - 1), max_size=60))
    tokenizer.decode(np.array(ids, dtype=np.int64)).encode("utf-8")


@every_tokenizer
def test_half_surrogates_are_no_text(tokenizer: Tokenizer) -> None:
    ids = tokenizer.encode("a\ud800b")
    assert (ids != tokenizer.document).all()
    assert set(tokenizer.decode(ids)) == {"a", "\ufffd", "b"}


@every_tokenizer
def test_saved_and_loaded_is_the_same(tokenizer: Tokenizer, tmp_path: Path) -> None:
    choice = parts.choose(TREE, "tokenizers", type(tokenizer).__module__.rsplit(".", 1)[1])
    path = tmp_path / "tokenizer.json"
    tokenizers.save(choice, tokenizer, path)
    loaded = tokenizers.load(path)
    assert type(loaded) is type(tokenizer)
    assert loaded.state() == tokenizer.state()
    assert loaded.token_bytes == tokenizer.token_bytes
    np.testing.assert_array_equal(loaded.encode(KNOWN + "ж"), tokenizer.encode(KNOWN + "ж"))
    before = path.read_bytes()
    tokenizers.save(choice, loaded, path)
    assert path.read_bytes() == before


Damage = Callable[[str], str]


@pytest.mark.parametrize(
    "damage",
    [
        lambda text: text[: len(text) // 2],
        lambda text: "",
        lambda text: "[]",
        lambda text: "null",
        lambda text: "{}",
        lambda text: json.dumps({**json.loads(text), "vocabulary": 7}),
        lambda text: json.dumps({**json.loads(text), "tokenizer": "charakter"}),
        lambda text: json.dumps({**json.loads(text), "tokenizer": None}),
        lambda text: json.dumps({**json.loads(text), "characters": []}),
        lambda text: json.dumps({**json.loads(text), "characters": ["ab", "c"]}),
        lambda text: json.dumps({**json.loads(text), "characters": 3}),
        lambda text: json.dumps({**json.loads(text), "special": {}}),
        lambda text: json.dumps({**json.loads(text), "special": {"document": 3}}),
        lambda text: json.dumps({**json.loads(text), "special": {"document": 1000}}),
        lambda text: json.dumps({**json.loads(text), "special": {"document": -1}}),
    ],
)
def test_a_damaged_file_is_refused_in_one_line(damage: Damage, tmp_path: Path) -> None:
    path = tmp_path / "tokenizer.json"
    tokenizers.save(parts.choose(TREE, "tokenizers", "character"), fitted("character"), path)
    path.write_text(damage(path.read_text()))
    with pytest.raises(UserError) as caught:
        tokenizers.load(path)
    assert "\n" not in str(caught.value)


def test_a_missing_file_names_the_stage_to_run(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="dvc repro tokenizer"):
        tokenizers.load(tmp_path / "tokenizer.json")


def test_character_has_one_id_a_character_in_order_and_spells_the_rest() -> None:
    tokenizer = fitted("character", "banana")
    assert tokenizer.token_bytes == [b"a", b"b", b"n", b"", b""]
    assert tokenizer.encode("nab").tolist() == [2, 0, 1]
    # 'c' is 99 = 1203 in base 4 (a, b, n, unseen), behind `unseen`, with as many digits as 0x10FFFF needs
    spelled = tokenizer.encode("ca").tolist()
    assert spelled == [3, *[0] * 7, 1, 2, 0, 3, 0]
    assert 4**11 > 0x10FFFF > 4**10


def test_character_needs_text_to_fit() -> None:
    with pytest.raises(UserError, match="no text"):
        tokenizers.fit(parts.choose(TREE, "tokenizers", "character"), ["", ""])


@pytest.mark.parametrize(("name", "tokens", "used"), [("character", 5 + 1 + 13, 3), ("byte", 7, 4)])
def test_the_report_counts_what_unseen_text_costs(name: str, tokens: int, used: int) -> None:
    tokenizer = fitted(name, "aabb")  # 13 digits in base 3 (a, b and unseen) spell any code point
    assert 3**13 > 0x10FFFF > 3**12
    assert tokenizers.report(tokenizer, ["aab", "", "bbé"]) == {
        "vocabulary": tokenizer.vocabulary,
        "used": used,
        "tokens": tokens,
        "bytes": 7,
        "characters": 6,
        "bytes_per_token": 7 / tokens,
    }
