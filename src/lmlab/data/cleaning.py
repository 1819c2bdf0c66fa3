"""The ASCII policy: reduce text to printable ASCII, tabs and newlines, and count every change.

A change is a loss only where nothing replaces the character. A letter without its accent, a
straight quotation mark for a curly one and a newline for another line end are no loss.
"""

import re
import unicodedata
from collections import Counter
from functools import cache
from typing import Literal

from lmlab.data.corpus_manifest import Change, Losses

Fate = Literal["replaced", "invisible", "dropped"]
"""What becomes of a character that ASCII lacks; see `fate`."""

_SPELLINGS = {
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
# combining marks of any script (accents), and selectors that only choose how a character is drawn
_ACCENT_OR_VARIANT = re.compile(
    "[\u0300-\u036f\u1ab0-\u1aff\u1dc0-\u1dff\u20d0-\u20ff\ufe00-\ufe0f\ufe20-\ufe2f\U000e0100-\U000e01ef]"
)


@cache
def to_ascii(character: str) -> str:
    """The ASCII replacement of one character: a spelling with the same meaning, its letter without
    accents, or nothing.
    """
    if character in _SPELLINGS:
        return _SPELLINGS[character]
    decomposed = unicodedata.normalize("NFKD", character)
    spelling = "".join(_SPELLINGS.get(c, c) for c in decomposed)
    return _FOREIGN.sub("", spelling)


def fate(character: str) -> Fate:
    """What the ASCII policy does with one character that ASCII lacks.

    `replaced`: it is spelled in ASCII. `invisible`: nothing replaces it, but it has no glyph of its
    own: a combining accent, a soft hyphen, a byte order mark, a variation selector. `dropped`:
    nothing replaces it, or its letters and digits are lost and only the brackets or spaces around
    them are left.
    """
    if unicodedata.category(character) == "Cf" or _ACCENT_OR_VARIANT.match(character):
        return "invisible"
    spelling = to_ascii(character)
    if not spelling:
        return "dropped"
    had_letters = any(map(str.isalnum, unicodedata.normalize("NFKD", character)))
    has_letters = any(map(str.isalnum, spelling))
    return "dropped" if had_letters and not has_letters else "replaced"


class Cleaner:
    """Cleans text piece by piece; counts the characters read and, in `changed`, the changes."""

    def __init__(self, ascii_only: bool) -> None:
        self.ascii_only = ascii_only
        self.characters = 0
        """Read so far; `\\r\\n` counts once."""
        self.changed: Counter[str] = Counter()

    def clean(self, text: str) -> str:
        """Turn line ends into newlines and, under the ASCII policy, map or drop what ASCII lacks.

        Without the policy only half surrogates, which no file can hold, are replaced (by U+FFFD).
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

    def losses(self) -> Losses:
        """How many characters were read, and how many of them changed, by fate."""
        counts: Counter[Fate] = Counter()
        for character, count in self.changed.items():
            if character not in _LINE_ENDS:
                counts[fate(character) if self.ascii_only else "replaced"] += count
        return Losses(
            characters=self.characters,
            replaced=counts["replaced"],
            invisible=counts["invisible"],
            dropped=counts["dropped"],
        )

    def dropped(self) -> list[str]:
        """The characters that were dropped, most frequent first."""
        return [
            character
            for character in self._by_frequency()
            if character not in _LINE_ENDS and fate(character) == "dropped"
        ]

    def changes(self) -> list[Change]:
        """Every character that was changed, most frequent first."""
        changes = []
        for character in self._by_frequency():
            change = Change(
                character=character.encode("utf-8", "replace").decode("utf-8"),
                code_point=" ".join(f"U+{ord(c):04X}" for c in character),
                became=self._replacement(character),
                count=self.changed[character],
            )
            changes.append(change)
        return changes

    def _by_frequency(self) -> list[str]:
        """The changed characters, most frequent first; equally frequent ones by code point."""
        return sorted(self.changed, key=lambda character: (-self.changed[character], character))

    def _replacement(self, character: str) -> str:
        if character in _LINE_ENDS:
            return "\n"
        return to_ascii(character) if self.ascii_only else "\ufffd"
