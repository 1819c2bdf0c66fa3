r"""Split text into pre-tokens: pieces such as words, with the space before them, that no token
crosses.

One regular expression does it. Its classes are explicit ranges of code points, so that every engine
splits alike (`\w` and `\p{L}` differ between engines and Unicode versions). It has no look-ahead or
look-behind, every character belongs to exactly one class and every repeat is bounded: any text is
covered completely, in time linear in its length, by pieces of at most LONGEST characters.
Pre-tokenisation is due to Sennrich et al. 2016; the classes follow Radford et al. 2019.
"""

import re
from collections import Counter
from collections.abc import Iterable

LONGEST = 32

_BLANK = r" \t"
_BREAK = r"\n\r"
_DIGIT = r"0-9"
# control characters and symbols of ASCII and Latin-1, including the multiplication and division
# signs; general punctuation except the two joiners used inside words; arrows, mathematics, boxes
# and shapes; East Asian punctuation, full-width forms included
_SIGN = (
    r"\u0000-\u0008\u000b\u000c\u000e-\u001f!-/:-@\[-`{-\u007f\u0080-\u00a9\u00ab-\u00b4\u00b6-\u00b9\u00bb-\u00bf"
    r"\u00d7\u00f7\u2000-\u200b\u200e-\u206f\u20a0-\u20cf\u2190-\u2bff\u3000-\u303f\ufe30-\ufe6f\uff01-\uff0f"
)

PATTERN = (
    r"'(?:ll|re|ve|[dmst])"  # the second half of an English contraction
    # a word: ASCII letters, and everything in none of the other classes
    rf"| ?[^{_BLANK}{_BREAK}{_DIGIT}{_SIGN}]{{1,{LONGEST - 1}}}"
    rf"| ?[{_DIGIT}]{{1,3}}"
    rf"| ?[{_SIGN}]{{1,{LONGEST - 1}}}"
    rf"|[{_BLANK}]{{1,{LONGEST}}}"
    rf"|[{_BREAK}]{{1,{LONGEST}}}"
)
_PATTERN = re.compile(PATTERN)
_HALF_SURROGATE = re.compile("[\ud800-\udfff]")


def whole(text: str) -> str:
    """The text with U+FFFD for half surrogates, which are no characters: UTF-8 cannot encode
    them.
    """
    return text if text.isascii() else _HALF_SURROGATE.sub("\ufffd", text)


def split(text: str) -> list[str]:
    """The pre-tokens of a text in order; joined they give `whole(text)`."""
    return _PATTERN.findall(whole(text))


def count(texts: Iterable[str]) -> Counter[str]:
    """How often each pre-token occurs in a stream of texts; memory grows with the distinct ones
    only.
    """
    counts: Counter[str] = Counter()
    for text in texts:
        counts.update(split(text))
    return counts
