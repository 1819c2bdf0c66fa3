import re
import unicodedata
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lmlab.data.cleaning import Cleaner, fate, to_ascii
from lmlab.data.corpus_manifest import Losses

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
    recorded = {change.code_point: change for change in cleaner.changes()}
    assert len(recorded) == len(cleaner.changed)
    assert sum(change.count for change in recorded.values()) == len(line_ends) + len(foreign)
    for character in foreign:
        assert recorded[f"U+{ord(character):04X}"].became == to_ascii(character)
    assert len(cleaned) == len(re.sub(r"\r\n?", "\n", text)) + sum(
        len(to_ascii(c)) - 1 for c in foreign
    )


@given(any_text)
def test_cleaning_twice_changes_nothing_more(text: str) -> None:
    for ascii_only in (True, False):
        once = Cleaner(ascii_only).clean(text)
        again = Cleaner(ascii_only)
        assert again.clean(once) == once
        assert not again.changed


@given(any_text)
def test_every_foreign_character_is_replaced_invisible_or_dropped(text: str) -> None:
    cleaner = Cleaner(ascii_only=True)
    cleaner.clean(text)
    losses = cleaner.losses().record()
    joined = re.sub(r"\r\n?", "\n", text)
    assert losses.pop("characters") == len(joined)
    assert sum(losses.values()) == len([c for c in joined if not ALLOWED.fullmatch(c)])
    assert losses["dropped"] == sum(
        fate(c) == "dropped" for c in joined if not ALLOWED.fullmatch(c)
    )
    assert sorted(cleaner.dropped()) == sorted(
        {c for c in joined if not ALLOWED.fullmatch(c) and fate(c) == "dropped"}
    )
    for character in set(joined):
        if not ALLOWED.fullmatch(character) and fate(character) != "replaced":
            assert fate(character) == "invisible" or not re.search(
                "[a-zA-Z0-9]", to_ascii(character)
            )


@given(any_text)
def test_without_the_policy_nothing_is_dropped(text: str) -> None:
    cleaner = Cleaner(ascii_only=False)
    cleaned = cleaner.clean(text)
    halves = sum(unicodedata.category(c) == "Cs" for c in text)
    assert cleaner.losses() == Losses(
        characters=len(cleaned), replaced=halves, invisible=0, dropped=0
    )


@pytest.mark.parametrize("form", ["NFC", "NFD"])
@pytest.mark.parametrize(
    "text",
    [
        "Où est l\u2019œuvre ? « À l\u2019école… » — 3 €\r\n",
        "Die Straße wäre schön, „sagte“ Jürgen.\n",
        "Zażółć gęślą jaźń, Łódź.\n",
        "İstanbul'da \u0131\u011fd\u0131r çok güzeldir.\n",
        "Tiếng Việt rất đẹp, đường phố.\n",
    ],
)
def test_a_text_in_latin_letters_loses_nothing_however_its_accents_are_written(
    text: str, form: str
) -> None:
    cleaner = Cleaner(ascii_only=True)
    composed = Cleaner(ascii_only=True)
    assert cleaner.clean(unicodedata.normalize(form, text)) == composed.clean(text)
    assert cleaner.losses().dropped == 0
    assert cleaner.losses().replaced > 0


@pytest.mark.parametrize(
    ("text", "dropped", "characters"),
    [
        ("¿Qué? ¡Sí!\n", 2, 11),
        ("γλώσσα δύο.\n", 9, 12),
        ("Съешь же ещё.\r\n", 10, 14),
        ("中文。\n", 3, 4),
        ("한국어\n", 3, 4),
        ("well 😀👨‍👩‍👧 ❤️\n", 5, 15),  # joiners and the variation selector are seen by nobody
    ],
)
def test_what_a_text_loses_is_what_has_no_spelling(
    text: str, dropped: int, characters: int
) -> None:
    cleaner = Cleaner(ascii_only=True)
    cleaner.clean(text)
    losses = cleaner.losses()
    assert (losses.dropped, losses.characters) == (dropped, characters)


@pytest.mark.parametrize(
    ("character", "expected"),
    [
        ("é", "replaced"),
        ("\u201c", "replaced"),
        ("½", "replaced"),
        ("\xa0", "replaced"),
        ("\x0c", "replaced"),
        ("\u0301", "invisible"),
        ("\xad", "invisible"),
        ("\ufeff", "invisible"),
        ("\u200d", "invisible"),
        ("\ufe0f", "invisible"),
        ("中", "dropped"),
        ("😀", "dropped"),
        ("\x00", "dropped"),
        ("\x1b", "dropped"),
        ("\x7f", "dropped"),
        ("\ud800", "dropped"),
        ("\ue000", "dropped"),
        ("й", "dropped"),
        ("¿", "dropped"),
        ("㈱", "dropped"),  # spelled as "()": what it says is gone
        ("ﷺ", "dropped"),  # spelled as three spaces
        ("⑴", "replaced"),
        ("\u05b0", "dropped"),  # a vowel of Hebrew, whose letter goes as well
    ],
)
def test_only_what_said_something_is_dropped(character: str, expected: str) -> None:
    assert fate(character) == expected


@given(plain_text)
def test_plain_text_is_left_alone(text: str) -> None:
    cleaner = Cleaner(ascii_only=True)
    assert cleaner.clean(text) == text
    assert cleaner.changes() == []


@given(any_text)
def test_without_the_policy_only_line_ends_and_half_surrogates_change(text: str) -> None:
    cleaner = Cleaner(ascii_only=False)
    cleaned = cleaner.clean(text)
    expected = "".join(
        "\ufffd" if unicodedata.category(c) == "Cs" else c for c in re.sub(r"\r\n?", "\n", text)
    )
    assert cleaned == expected
    cleaned.encode("utf-8")
    for change in cleaner.changes():
        assert change.became in ("\n", "\ufffd")
        change.character.encode("utf-8")


@pytest.mark.parametrize(
    ("character", "spelled"),
    [
        ("é", "e"),
        ("Å", "A"),
        ("ß", "ss"),
        ("Æ", "AE"),
        ("ﬁ", "fi"),
        ("…", "..."),
        ("—", "--"),
        ("\u2013", "-"),
        ("\u201c", '"'),
        ("\u2019", "'"),
        ("\u02bc", "'"),
        ("\xa0", " "),
        ("½", "1/2"),
        ("Ǿ", "O"),
        ("\x85", "\n"),
        ("\u200b", ""),
        ("\ufeff", ""),
        ("中", ""),
        ("😀", ""),
        ("\x00", ""),
        ("\x7f", ""),
        ("\ud800", ""),
    ],
)
def test_a_character_is_spelled_with_the_same_meaning_or_dropped(
    character: str, spelled: str
) -> None:
    assert to_ascii(character) == spelled


def test_the_record_is_sorted_by_count() -> None:
    cleaner = Cleaner(ascii_only=True)
    cleaner.clean("é—é\r\n")
    cleaner.clean("é")
    assert [change.record() for change in cleaner.changes()] == [
        {"character": "é", "code_point": "U+00E9", "became": "e", "count": 3},
        {"character": "\r\n", "code_point": "U+000D U+000A", "became": "\n", "count": 1},
        {"character": "—", "code_point": "U+2014", "became": "--", "count": 1},
    ]
