import re
import unicodedata
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lmlab.cleaning import Cleaner, to_ascii

ALLOWED = re.compile(r"[\n\t\x20-\x7e]*")
any_text = st.text(st.characters(exclude_categories=()))  # surrogates included
plain_text = st.text(st.sampled_from([chr(point) for point in (9, 10, *range(32, 127))]))


@given(any_text)
def test_what_comes_out_is_ascii_and_every_change_is_counted(text: str) -> None:
    cleaner = Cleaner(ascii_only=True)
    cleaned = cleaner.clean(text)
    assert ALLOWED.fullmatch(cleaned)
    # an independent count: what is left of the input once line ends are joined
    line_ends = re.findall(r"\r\n|\r", text)
    foreign = [c for c in re.sub(r"\r\n?", "\n", text) if not ALLOWED.fullmatch(c)]
    assert cleaner.changed == Counter(line_ends + foreign)
    recorded = {row["code_point"]: row for row in cleaner.record()}
    assert len(recorded) == len(cleaner.changed)
    assert sum(int(row["count"]) for row in recorded.values()) == len(line_ends) + len(foreign)
    for character in foreign:
        assert recorded[f"U+{ord(character):04X}"]["became"] == to_ascii(character)
    assert len(cleaned) == len(re.sub(r"\r\n?", "\n", text)) + sum(len(to_ascii(c)) - 1 for c in foreign)


@given(any_text)
def test_cleaning_twice_changes_nothing_more(text: str) -> None:
    for ascii_only in (True, False):
        once = Cleaner(ascii_only).clean(text)
        again = Cleaner(ascii_only)
        assert again.clean(once) == once
        assert not again.changed


@given(plain_text)
def test_plain_text_is_left_alone(text: str) -> None:
    cleaner = Cleaner(ascii_only=True)
    assert cleaner.clean(text) == text
    assert cleaner.record() == []


@given(any_text)
def test_without_the_policy_only_line_ends_and_half_surrogates_change(text: str) -> None:
    cleaner = Cleaner(ascii_only=False)
    cleaned = cleaner.clean(text)
    expected = "".join("\ufffd" if unicodedata.category(c) == "Cs" else c for c in re.sub(r"\r\n?", "\n", text))
    assert cleaned == expected
    cleaned.encode("utf-8")
    for row in cleaner.record():
        assert row["became"] in ("\n", "\ufffd")
        str(row["character"]).encode("utf-8")


@pytest.mark.parametrize(
    ("character", "spelled"),
    [
        ("é", "e"), ("Å", "A"), ("ß", "ss"), ("Æ", "AE"), ("ﬁ", "fi"), ("…", "..."), ("—", "--"), ("\u2013", "-"),
        ("\u201c", '"'), ("\u2019", "'"), ("\u02bc", "'"), ("\xa0", " "), ("½", "1/2"), ("Ǿ", "O"), ("\x85", "\n"),
        ("\u200b", ""), ("\ufeff", ""), ("中", ""), ("😀", ""), ("\x00", ""), ("\x7f", ""), ("\ud800", ""),
    ],
)  # fmt: skip
def test_a_character_is_spelled_with_the_same_meaning_or_dropped(character: str, spelled: str) -> None:
    assert to_ascii(character) == spelled


def test_the_record_is_sorted_by_count() -> None:
    cleaner = Cleaner(ascii_only=True)
    cleaner.clean("é—é\r\n")
    cleaner.clean("é")
    assert cleaner.record() == [
        {"character": "é", "code_point": "U+00E9", "became": "e", "count": 3},
        {"character": "\r\n", "code_point": "U+000D U+000A", "became": "\n", "count": 1},
        {"character": "—", "code_point": "U+2014", "became": "--", "count": 1},
    ]
