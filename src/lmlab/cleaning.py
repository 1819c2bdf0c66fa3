"""The ASCII policy: text comes out in printable ASCII, tabs and newlines, and every change is on record."""

import re
import unicodedata
from collections import Counter

_SPELLED = {
    "\u2018": "'", "\u2019": "'", "\u201a": "'", "\u201b": "'", "\u2032": "'", "\u00b4": "'",
    "\u02bc": "'", "\u2039": "'", "\u203a": "'",
    "\u201c": '"', "\u201d": '"', "\u201e": '"', "\u2033": '"', "\u00ab": '"', "\u00bb": '"',
    "\u2010": "-", "\u2011": "-", "\u2012": "-", "\u2013": "-", "\u2212": "-", "\u2014": "--", "\u2015": "--",
    "\u2022": "*", "\u00b7": "*", "\u00d7": "x", "\u00f7": "/", "\u2044": "/", "\u20ac": "EUR", "\u00a3": "GBP",
    "\u00df": "ss", "\u1e9e": "SS", "\u00e6": "ae", "\u00c6": "AE", "\u0153": "oe", "\u0152": "OE",
    "\u00f8": "o", "\u00d8": "O", "\u0142": "l", "\u0141": "L", "\u0111": "d", "\u0110": "D",
    "\u00fe": "th", "\u00de": "Th", "\u00f0": "d", "\u00d0": "D", "\u0131": "i",
    "\u2028": "\n", "\u2029": "\n\n", "\x0b": "\n", "\x0c": "\n", "\x85": "\n",
}  # fmt: skip
_SURROGATE = re.compile(r"[\ud800-\udfff]")
_FOREIGN = re.compile(r"[^\n\t\x20-\x7e]")


def to_ascii(character: str) -> str:
    """What stands for one character: a spelling of the same meaning, its letter without accents, or nothing."""
    decomposed = character if character in _SPELLED else unicodedata.normalize("NFKD", character)
    spelled = "".join(_SPELLED.get(c, c) for c in decomposed)
    return _FOREIGN.sub("", spelled)


class Cleaner:
    """Cleans text piece by piece and counts what it changed in `changed[character]`."""

    def __init__(self, ascii_only: bool) -> None:
        self.ascii_only = ascii_only
        self.changed: Counter[str] = Counter()

    def clean(self, text: str) -> str:
        """Line ends become newlines; under the ASCII policy every other character is mapped or dropped.

        Without it only half surrogates, which no file can hold, are replaced (by U+FFFD).
        """
        for line_end in ("\r\n", "\r"):
            if line_end in text:
                self.changed[line_end] += text.count(line_end)
                text = text.replace(line_end, "\n")
        if not self.ascii_only:
            self.changed.update(_SURROGATE.findall(text))
            return _SURROGATE.sub("\ufffd", text)
        self.changed.update(_FOREIGN.findall(text))
        return _FOREIGN.sub(lambda match: to_ascii(match[0]), text)

    def record(self) -> list[dict[str, str | int]]:
        """What was changed, most frequent first: the character, its code point, what stands for it now, how often."""
        return [
            {
                "character": character.encode("utf-8", "replace").decode("utf-8"),
                "code_point": " ".join(f"U+{ord(c):04X}" for c in character),
                "became": self._became(character),
                "count": count,
            }
            for character, count in sorted(self.changed.items(), key=lambda item: (-item[1], item[0]))
        ]

    def _became(self, character: str) -> str:
        if character in ("\r\n", "\r"):
            return "\n"
        return to_ascii(character) if self.ascii_only else "\ufffd"
