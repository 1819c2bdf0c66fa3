import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import hostile
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from small import PROJECT

from lmlab.core import params, registry
from lmlab.core.errors import UserError
from lmlab.data import pretokens
from lmlab.data import shard as sharding
from lmlab.data.tokenizers import base as tokenizers
from lmlab.data.tokenizers.base import SizedOptions, Tokenizer, TokenizerParams
from lmlab.experiments.stages.layout import Layout
from lmlab.experiments.stages.tokenizer import tokenizer as stage

TREE = params.read(PROJECT / "params.yaml")
NAMES = registry.names("tokenizers")
SIZED = [name for name in NAMES if issubclass(registry.find("tokenizers", name)[1], SizedOptions)]
KNOWN = "To be, or not to be: that is the question.\nWhether 'tis nobler — é ß 中 😀\n"
TINY = "a"
NEW = (
    "Sein oder Nichtsein, das ist hier die Frage: ob's edler im Gemüt? 是或不是… Sein oder"
    " Nichtsein!\n"
)

known_text = st.text(st.sampled_from(sorted(set(KNOWN))))


def fitted(name: str, text: str = KNOWN) -> Tokenizer:
    return tokenizers.fit(registry.choose(TREE, "tokenizers", name), [text[:10], text[10:], ""])


def titled(tokenizer: Tokenizer) -> str:
    return f"{type(tokenizer).__name__}-{tokenizer.bos}-{tokenizer.vocabulary_size}"


FITTED = [
    fitted(name, text) for name in NAMES for text in (KNOWN, TINY, "".join(map(chr, range(1, 255))))
]
GROWN = [made.grown([NEW], 3).grown([NEW, "Die Frage? " * 4], 40) for made in FITTED]
every_tokenizer = pytest.mark.parametrize("tokenizer", FITTED + GROWN, ids=titled)
every_fitted = pytest.mark.parametrize("tokenizer", FITTED, ids=titled)


@every_tokenizer
@given(text=hostile.texts)
def test_any_text_comes_back_whole(tokenizer: Tokenizer, text: str) -> None:
    ids = tokenizer.encode(text)
    assert ids.ndim == 1
    assert ids.dtype.kind == "u"
    assert (ids < tokenizer.vocabulary_size).all()
    assert (ids != tokenizer.bos).all()
    assert tokenizer.decode(ids) == text


@pytest.mark.parametrize("tokenizer", FITTED[::3] + GROWN[::3], ids=titled)
@pytest.mark.parametrize("text", hostile.LONG.values(), ids=hostile.LONG)
def test_long_hostile_texts_come_back_whole_and_four_times_the_text_is_four_times_the_ids(
    tokenizer: Tokenizer, text: str
) -> None:
    quarter = text[: len(text) // 4]
    once, four = tokenizer.encode(quarter), tokenizer.encode(quarter * 4)
    assert (four != tokenizer.bos).all()
    assert tokenizer.decode(four) == quarter * 4
    seams = (
        4 * 4 * pretokens.LONGEST
    )  # what three seams may change: the bytes of a pre-token on either side
    assert abs(len(four) - 4 * len(once)) <= seams


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


@every_fitted
def test_the_document_token_is_the_last_when_fitted(tokenizer: Tokenizer) -> None:
    assert tokenizer.bos == tokenizer.vocabulary_size - 1 == len(tokenizer.token_bytes) - 1


@every_tokenizer
def test_the_document_token_stands_for_no_text(tokenizer: Tokenizer) -> None:
    assert tokenizer.token_bytes[tokenizer.bos] == b""
    document = np.array([tokenizer.bos])
    ids = np.concatenate([document, tokenizer.encode("a"), document, tokenizer.encode("b")])
    assert tokenizer.decode(ids) == "ab"


@every_tokenizer
@given(data=st.data())
def test_any_ids_give_text_that_can_be_written(tokenizer: Tokenizer, data: st.DataObject) -> None:
    ids = data.draw(st.lists(st.integers(0, tokenizer.vocabulary_size - 1), max_size=60))
    tokenizer.decode(np.array(ids, dtype=np.int64)).encode("utf-8")


@every_tokenizer
def test_half_surrogates_are_no_text(tokenizer: Tokenizer) -> None:
    ids = tokenizer.encode("a\ud800b")
    assert (ids != tokenizer.bos).all()
    assert set(tokenizer.decode(ids)) == {"a", "\ufffd", "b"}


@every_tokenizer
def test_saved_and_loaded_is_the_same(tokenizer: Tokenizer, tmp_path: Path) -> None:
    choice = registry.choose(TREE, "tokenizers", type(tokenizer).__module__.rsplit(".", 1)[1])
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


@every_tokenizer
def test_a_file_names_the_special_tokens(tokenizer: Tokenizer, tmp_path: Path) -> None:
    path = tmp_path / "tokenizer.json"
    tokenizers.save(
        registry.choose(TREE, "tokenizers", type(tokenizer).__module__.rsplit(".", 1)[1]),
        tokenizer,
        path,
    )
    assert json.loads(path.read_text())["special"] == {"bos": tokenizer.bos}


@pytest.mark.parametrize("name", NAMES)
def test_the_same_text_gives_the_same_tokenizer(name: str) -> None:
    assert fitted(name).state() == fitted(name).state()
    assert fitted(name).grown([NEW], 5).state() == fitted(name).grown([NEW], 5).state()


@every_tokenizer
@given(new=hostile.texts, tokens=st.integers(0, 30), data=st.data())
def test_growing_leaves_every_old_id_as_it_was(
    tokenizer: Tokenizer, new: str, tokens: int, data: st.DataObject
) -> None:
    before = tokenizer.state()
    grown = tokenizer.grown(iter([new, new[::-1]]), tokens)
    assert type(grown) is type(tokenizer)
    assert grown.bos == tokenizer.bos
    assert grown.token_bytes[: tokenizer.vocabulary_size] == tokenizer.token_bytes
    assert grown.vocabulary_size <= tokenizer.vocabulary_size + tokens
    assert len(
        set(grown.token_bytes[tokenizer.vocabulary_size :]) - set(tokenizer.token_bytes)
    ) == (grown.vocabulary_size - tokenizer.vocabulary_size)
    ids = np.array(
        data.draw(st.lists(st.integers(0, tokenizer.vocabulary_size - 1), max_size=30)),
        dtype=np.int64,
    )
    assert grown.decode(ids) == tokenizer.decode(ids)
    assert grown.decode(grown.encode(new)) == new
    assert (grown.encode(new) != grown.bos).all()
    assert tokenizer.state() == before


@every_tokenizer
@pytest.mark.parametrize(("texts", "tokens"), [([NEW], 0), ([], 50), ([""], 50)])
def test_nothing_to_learn_or_no_room_changes_nothing(
    tokenizer: Tokenizer, texts: list[str], tokens: int
) -> None:
    assert tokenizer.grown(texts, tokens).state() == tokenizer.state()


@every_fitted
def test_a_grown_tokenizer_spells_the_new_text_with_fewer_ids_if_it_can_grow(
    tokenizer: Tokenizer,
) -> None:
    grown = tokenizer.grown([NEW], 20)
    assert grown.vocabulary_size - tokenizer.vocabulary_size in (
        range(1, 21) if tokenizer.grows else {0}
    )
    if grown.vocabulary_size > tokenizer.vocabulary_size:
        assert len(grown.encode(NEW)) < len(tokenizer.encode(NEW))


@pytest.mark.parametrize("name", NAMES)
def test_a_shard_type_holds_every_id_of_text(name: str) -> None:
    for tokenizer in [fitted(name), fitted(name).grown([NEW], 9)]:
        largest = max(token for token in range(tokenizer.vocabulary_size) if token != tokenizer.bos)
        assert sharding._type(tokenizer) == np.min_scalar_type(largest)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("bos", [-1, 0, 255, 3.0, "257", None, 10**9])
def test_a_bos_token_in_the_wrong_place_is_refused(name: str, bos: object, tmp_path: Path) -> None:
    path = tmp_path / "tokenizer.json"
    tokenizers.save(registry.choose(TREE, "tokenizers", name), fitted(name), path)
    path.write_text(json.dumps({**json.loads(path.read_text()), "special": {"bos": bos}}))
    with pytest.raises(UserError, match="is damaged"):
        tokenizers.load(path)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("wrong", [None, 3, "x", [], {}, {"a": "b"}, [[1]], ["\ud800"]])
def test_a_file_with_any_one_thing_wrong_is_refused_in_one_line(
    name: str, wrong: object, tmp_path: Path
) -> None:
    path = tmp_path / "tokenizer.json"
    tokenizers.save(registry.choose(TREE, "tokenizers", name), fitted(name).grown([NEW], 3), path)
    good = json.loads(path.read_text())
    for key in good:
        path.write_text(json.dumps({**good, key: wrong}))
        with pytest.raises(UserError) as caught:
            tokenizers.load(path)
        assert "\n" not in str(caught.value)


Damage = Callable[[str], str]


@pytest.mark.parametrize(
    "damage",
    [
        lambda text: text[: len(text) // 2],
        lambda text: "",
        lambda text: "[]",
        lambda text: "null",
        lambda text: "{}",
        lambda text: json.dumps({**json.loads(text), "vocabulary_size": 7}),
        lambda text: json.dumps({**json.loads(text), "tokenizer": "charakter"}),
        lambda text: json.dumps({**json.loads(text), "tokenizer": None}),
        lambda text: json.dumps({**json.loads(text), "characters": []}),
        lambda text: json.dumps({**json.loads(text), "characters": ["ab", "c"]}),
        lambda text: json.dumps({**json.loads(text), "characters": 3}),
        lambda text: json.dumps({**json.loads(text), "special": {}}),
        lambda text: json.dumps({**json.loads(text), "special": {"bos": 3}}),
        lambda text: json.dumps({**json.loads(text), "special": {"bos": 1000}}),
        lambda text: json.dumps({**json.loads(text), "special": {"bos": -1}}),
    ],
)
def test_a_damaged_file_is_refused_in_one_line(damage: Damage, tmp_path: Path) -> None:
    path = tmp_path / "tokenizer.json"
    tokenizers.save(registry.choose(TREE, "tokenizers", "character"), fitted("character"), path)
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
    # 'c' is 99 = 1203 in base 4 (a, b, n, unseen), behind `unseen`, with as many digits as 0x10FFFF
    # needs
    spelled = tokenizer.encode("ca").tolist()
    assert spelled == [3, *[0] * 7, 1, 2, 0, 3, 0]
    assert 4**11 > 0x10FFFF > 4**10


def test_the_report_says_when_the_text_has_too_little_for_the_vocabulary_asked_for() -> None:
    choice = registry.choose(TREE, "tokenizers", "bpe")
    tokenizer = tokenizers.fit(choice, ["abab abab"])
    report = tokenizers.report(tokenizer, ["abab"], choice.options)
    assert (report.vocabulary_size, report.vocabulary_size_asked) == (
        259,
        TREE["tokenizers"]["bpe"]["vocabulary_size"],
    )
    character = registry.choose(TREE, "tokenizers", "character")
    without = tokenizers.report(fitted("character"), ["a"], character.options)
    assert "vocabulary_size_asked" not in without.record()


@pytest.mark.parametrize("name", SIZED)
def test_a_vocabulary_without_room_for_the_bytes_is_refused(name: str) -> None:
    tree = {**TREE, "tokenizers": {name: {"vocabulary_size": 256}}}
    with pytest.raises(
        UserError, match=f"tokenizers.{name}.vocabulary_size should be greater than or equal to 257"
    ):
        registry.choose(tree, "tokenizers", name)


def test_a_later_character_is_no_digit_of_a_spelling() -> None:
    tokenizer = fitted("character", "ab").grown(["ccc"], 1)
    assert tokenizer.token_bytes == [b"a", b"b", b"", b"", b"c"]
    spelled = tokenizer.encode("d")
    assert tokenizer.decode(spelled) == "d"
    spelled[-1] = 4
    assert tokenizer.decode(spelled) == "\ufffd"


def test_character_needs_text_to_fit() -> None:
    with pytest.raises(UserError, match="no text"):
        tokenizers.fit(registry.choose(TREE, "tokenizers", "character"), ["", ""])


@pytest.mark.parametrize(("name", "tokens", "used"), [("character", 5 + 1 + 13, 3), ("byte", 7, 4)])
def test_the_report_counts_what_unseen_text_costs(name: str, tokens: int, used: int) -> None:
    tokenizer = fitted(name, "aabb")  # 13 digits in base 3 (a, b and unseen) spell any code point
    assert 3**13 > 0x10FFFF > 3**12
    assert tokenizers.report(tokenizer, ["aab", "", "bbé"]).record() == {
        "vocabulary_size": tokenizer.vocabulary_size,
        "used": used,
        "tokens": tokens,
        "bytes": 7,
        "characters": 6,
        "bytes_per_token": 7 / tokens,
    }


@pytest.mark.parametrize(
    ("text", "told"),
    [("\n" * 300, "only 1 different token(s)"), ("acgt", "only 4"), ("acgt\n", "")],
)
def test_the_stage_calls_a_vocabulary_of_a_handful_what_it_is(
    corpus_of: Callable[..., Path],
    tmp_path: Path,
    text: str,
    told: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    layout = replace(Layout.below(tmp_path), corpus=corpus_of(text))
    stage(params.changed(TREE, {"tokenizer.name": "character"}), layout)
    first, *others = capsys.readouterr().out.splitlines()
    assert first.startswith(f"tokenizer: vocabulary {len(set(text)) + 2},")
    assert [line.startswith(f"tokenizer: {told}") for line in others] == [True] * bool(told)


def asked(name: str, file: Path | str) -> tuple[TokenizerParams, registry.Choice]:
    tree = params.changed(TREE, {"tokenizer.name": name, "tokenizer.from": str(file)})
    section = params.section(tree, "tokenizer", TokenizerParams)
    return section, registry.choices(tree, "tokenizer", section)["name"]


def test_a_tokenizer_is_taken_from_the_file_that_is_named(tmp_path: Path) -> None:
    file = tmp_path / "grown.json"
    grown = fitted("bpe").grown(["Größe " * 9], 4)
    tokenizers.write("bpe", grown, file)
    assert (
        tokenizers.load_or_fit(*asked("bpe", file), iter(["zzz zzz"])).token_bytes
        == grown.token_bytes
    )
    assert (
        tokenizers.load_or_fit(*asked("bpe", tokenizers.FITTED), ["zzz zzz"]).token_bytes
        != grown.token_bytes
    )
    with pytest.raises(
        UserError, match=r"holds a bpe tokenizer, no word; set tokenizer.name to bpe"
    ):
        tokenizers.load_chosen(*asked("word", file))


@pytest.mark.parametrize("spoil", ["flip", "cut", "delete", "folder", "empty"])
def test_a_file_that_is_no_whole_tokenizer_is_refused_by_the_key(
    spoil: str, tmp_path: Path
) -> None:
    file = tmp_path / "grown.json"
    tokenizers.write("word", fitted("word"), file)
    content = file.read_bytes()
    tokenizers.load_chosen(*asked("word", file))
    file.unlink()
    if spoil == "flip":  # still a tokenizer, but another
        file.write_bytes(content.replace(b'"not"', b'"nut"', 1))
        assert file.read_bytes() != content
    elif spoil == "cut":
        file.write_bytes(content[: len(content) // 2])
    elif spoil == "folder":
        file.mkdir()
    with pytest.raises(UserError, match=r"^params.yaml: tokenizer.from"):
        tokenizers.load_chosen(*asked("word", "" if spoil == "empty" else file))
