"""Pre-tokens cover any text, are short, and come out alike in two engines."""

import re
import sys

import hostile
import pytest
import tiktoken
from hypothesis import given

from lmlab.data import pretokens


@given(text=hostile.texts)
def test_pieces_joined_are_the_text(text: str) -> None:
    assert "".join(pretokens.split(text)) == text


@pytest.mark.parametrize("text", hostile.LONG.values(), ids=hostile.LONG)
def test_long_hostile_texts_are_covered_by_pieces_that_are_short_but_not_shorter_than_need_be(
    text: str,
) -> None:
    pieces = pretokens.split(text)
    assert "".join(pieces) == text
    assert max(map(len, pieces)) <= pretokens.LONGEST
    four = pretokens.split(text * 4)
    assert 4 * len(pieces) - 4 <= len(four) <= 4 * len(pieces)


def test_every_character_alone_is_one_piece_that_matches_at_once() -> None:
    pattern = re.compile(pretokens.PATTERN)
    missed = [point for point in range(sys.maxunicode + 1) if not pattern.fullmatch(chr(point))]
    assert missed == []


def test_a_piece_alone_is_cut_no_further() -> None:
    for text in hostile.LONG.values():
        for piece in set(pretokens.split(text[:5_000])):
            assert pretokens.split(piece) == [piece]


@pytest.mark.parametrize(
    ("text", "pieces"),
    [
        ("To be, or not?", ["To", " be", ",", " or", " not", "?"]),
        ("it's we'll they'd", ["it", "'s", " we", "'ll", " they", "'d"]),
        ("in 1984, 12345", ["in", " 198", "4", ",", " 123", "45"]),
        ("a  b\n\n\tc", ["a", "  ", "b", "\n\n", "\t", "c"]),
        ("été na\u00efve e\u0301", ["été", " na\u00efve", " e\u0301"]),
        ("«Да»—нет…", ["«", "Да", "»—", "нет", "…"]),
        ("1½ \u00d7 2€", ["1", "½", " \u00d7", " 2", "€"]),
        ("名前、東京。", ["名前", "、", "東京", "。"]),
        ("a" * 33, ["a" * 31, "aa"]),
        ("", []),
    ],
)
def test_words_numbers_and_signs_are_kept_together(text: str, pieces: list[str]) -> None:
    assert pretokens.split(text) == pieces


def test_a_half_surrogate_becomes_a_replacement_character_and_a_pair_written_in_halves_two() -> (
    None
):
    assert "".join(pretokens.split("a\ud800b\ud83d\ude00")) == "a\ufffdb\ufffd\ufffd"


def test_counting_is_over_all_texts() -> None:
    counts = pretokens.count(iter(["to be", "not to be", ""]))
    assert counts == {"to": 1, " be": 2, "not": 1, " to": 1}


def cuts(text: str) -> list[str]:
    """Where tiktoken's engine cuts: found from the tokens of an encoding in which every pre-token
    is one token.
    """
    wanted = {piece.encode() for piece in pretokens.split(text)}
    singles = {bytes([value]) for value in range(256)}
    ranks = {
        token: rank for rank, token in enumerate([*sorted(singles), *sorted(wanted - singles)])
    }
    engine = tiktoken.Encoding(
        "cuts", pat_str=pretokens.PATTERN, mergeable_ranks=ranks, special_tokens={}
    )
    return [
        engine.decode_single_token_bytes(token).decode("utf-8", "replace")
        for token in engine.encode_ordinary(text)
    ]


@given(text=hostile.texts)
def test_tiktoken_cuts_at_the_same_places(text: str) -> None:
    assert cuts(text) == pretokens.split(text)


@pytest.mark.parametrize("text", hostile.LONG.values(), ids=hostile.LONG)
def test_tiktoken_cuts_long_hostile_texts_at_the_same_places(text: str) -> None:
    assert cuts(text[:20_000]) == pretokens.split(text[:20_000])


def test_tiktoken_puts_every_character_into_the_same_class() -> None:
    points = [
        point
        for point in [*range(0x10000), *range(0x10000, 0x110000, 97)]
        if not 0xD800 <= point < 0xE000
    ]
    for start in range(0, len(points), 10_000):
        # between a letter and a digit, each class of character is cut in another way
        text = "".join(f"x{chr(point)}1{chr(point)}." for point in points[start : start + 10_000])
        assert cuts(text) == pretokens.split(text)
