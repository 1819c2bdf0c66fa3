"""The ASCII policy: text comes out in printable ASCII, tabs and newlines, and every change is on
record.

What becomes of a character is a loss only where nothing stands for it afterwards. A letter without
its accent, a straight quotation mark for a curly one and a newline for another line end are none.
"""

import re
import unicodedata
from collections import Counter
from functools import cache
from typing import Literal

Fate = Literal["replaced", "invisible", "dropped"]
"""What becomes of a character that ASCII lacks, see `fate`."""

_SPELLED = {
    "\u2018": "'",
    "\u2019": "'",
    "\u201a": "'",
    "\u201b": "'",
    "\u2032": "'",
    "\u00b4": "'",
    "\u02bc": "'",
    "\u2039": "'",
    "\u203a": "'",
    "\u201c": '"',
    "\u201d": '"',
    "\u201e": '"',
    "\u2033": '"',
    "\u00ab": '"',
    "\u00bb": '"',
    "\u2010": "-",
    "\u2011": "-",
    "\u2012": "-",
    "\u2013": "-",
    "\u2212": "-",
    "\u2014": "--",
    "\u2015": "--",
    "\u2022": "*",
    "\u00b7": "*",
    "\u00d7": "x",
    "\u00f7": "/",
    "\u2044": "/",
    "\u20ac": "EUR",
    "\u00a3": "GBP",
    "\u00df": "ss",
    "\u1e9e": "SS",
    "\u00e6": "ae",
    "\u00c6": "AE",
    "\u0153": "oe",
    "\u0152": "OE",
    "\u00f8": "o",
    "\u00d8": "O",
    "\u0142": "l",
    "\u0141": "L",
    "\u0111": "d",
    "\u0110": "D",
    "\u00fe": "th",
    "\u00de": "Th",
    "\u00f0": "d",
    "\u00d0": "D",
    "\u0131": "i",
    "\u2028": "\n",
    "\u2029": "\n\n",
    "\x0b": "\n",
    "\x0c": "\n",
    "\x85": "\n",
}
_SURROGATE = re.compile(r"[\ud800-\udfff]")
_FOREIGN = re.compile(r"[^\n\t\x20-\x7e]")
_LINE_ENDS = ("\r\n", "\r")
# marks that stand on a letter of whatever script (accents), and those that only choose how a
# character is drawn
_ACCENT_OR_VARIANT = re.compile(
    "[\u0300-\u036f\u1ab0-\u1aff\u1dc0-\u1dff\u20d0-\u20ff\ufe00-\ufe0f\ufe20-\ufe2f\U000e0100-\U000e01ef]"
)


@cache
def to_ascii(character: str) -> str:
    """What stands for one character: a spelling of the same meaning, its letter without accents, or
    nothing.
    """
    decomposed = character if character in _SPELLED else unicodedata.normalize("NFKD", character)
    spelled = "".join(_SPELLED.get(c, c) for c in decomposed)
    return _FOREIGN.sub("", spelled)


def fate(character: str) -> Fate:
    """What the ASCII policy makes of one character that ASCII lacks.

    `replaced`: something stands for it. `invisible`: nothing does, but it had no look of its own:
    an accent after its letter, a soft hyphen, a byte order mark, a variation selector. `dropped`:
    nothing does, or of its letters and digits only the brackets or spaces around them.
    """
    if unicodedata.category(character) == "Cf" or _ACCENT_OR_VARIANT.match(character):
        return "invisible"
    spelled = to_ascii(character)
    if not spelled:
        return "dropped"
    said_something = any(c.isalnum() for c in unicodedata.normalize("NFKD", character))
    says_something = any(c.isalnum() for c in spelled)
    return "dropped" if said_something and not says_something else "replaced"


class Cleaner:
    """Cleans text piece by piece and counts what it read in `characters` and what it changed in
    `changed[character]`.
    """

    def __init__(self, ascii_only: bool) -> None:
        self.ascii_only = ascii_only
        self.characters = 0
        """Those read so far; a line end of two counts once."""
        self.changed: Counter[str] = Counter()

    def clean(self, text: str) -> str:
        """Line ends become newlines; under the ASCII policy every other character is mapped or
        dropped.

        Without it only half surrogates, which no file can hold, are replaced (by U+FFFD).
        """
        for line_end in _LINE_ENDS:
            if line_end in text:
                self.changed[line_end] += text.count(line_end)
                text = text.replace(line_end, "\n")
        self.characters += len(text)
        if not self.ascii_only:
            self.changed.update(_SURROGATE.findall(text))
            return _SURROGATE.sub("\ufffd", text)
        foreign = _FOREIGN.findall(text)
        if not foreign:
            return text
        self.changed.update(foreign)
        return _FOREIGN.sub(lambda match: to_ascii(match[0]), text)

    def losses(self) -> dict[str, int]:
        """How many `characters` were read, and how many of these `replaced`, `invisible` and
        `dropped`.

        Line ends are none of the three.
        """
        counts: dict[str, int] = {
            "characters": self.characters,
            "replaced": 0,
            "invisible": 0,
            "dropped": 0,
        }
        for character, count in self._foreign():
            counts[fate(character) if self.ascii_only else "replaced"] += count
        return counts

    def dropped(self) -> list[str]:
        """The characters that were dropped, the most frequent first."""
        gone = [
            (count, character)
            for character, count in self._foreign()
            if fate(character) == "dropped"
        ]
        return [character for _, character in sorted(gone, key=lambda item: (-item[0], item[1]))]

    def _foreign(self) -> list[tuple[str, int]]:
        return [
            (character, count)
            for character, count in self.changed.items()
            if character not in _LINE_ENDS
        ]

    def record(self) -> list[dict[str, str | int]]:
        """What was changed, most frequent first: the character, its code point, what stands for it
        now, how often.
        """
        return [
            {
                "character": character.encode("utf-8", "replace").decode("utf-8"),
                "code_point": " ".join(f"U+{ord(c):04X}" for c in character),
                "became": self._became(character),
                "count": count,
            }
            for character, count in sorted(
                self.changed.items(), key=lambda item: (-item[1], item[0])
            )
        ]

    def _became(self, character: str) -> str:
        if character in _LINE_ENDS:
            return "\n"
        return to_ascii(character) if self.ascii_only else "\ufffd"
