r"""Text cut into pre-tokens: pieces such as words, with the space before them, that no token ever
crosses.

One regular expression of explicit ranges of code points does it, so that every engine cuts alike
(what `\w` or `\p{L}` mean differs between engines and Unicode versions), and without looking ahead
or back: every character belongs to exactly one class, and every repeat is bounded, so any text is
covered whole, in time proportional to its length, by pieces of at most LONGEST characters. The idea
of cutting first is of Sennrich et al. 2016, and the classes follow Radford et al. 2019.
"""

import re
from collections import Counter
from collections.abc import Iterable

LONGEST = 32

_BLANK = r" \t"
_BREAK = r"\n\r"
_DIGIT = r"0-9"
# ASCII's control characters and signs; Latin-1's, the multiplication and division signs; general
# punctuation but for the two joiners that stand inside words; arrows, mathematics, boxes and
# shapes; East Asian punctuation, also in full width
_SIGN = (
    r"\u0000-\u0008\u000b\u000c\u000e-\u001f!-/:-@\[-`{-\u007f\u0080-\u00a9\u00ab-\u00b4\u00b6-\u00b9\u00bb-\u00bf"
    r"\u00d7\u00f7\u2000-\u200b\u200e-\u206f\u20a0-\u20cf\u2190-\u2bff\u3000-\u303f\ufe30-\ufe6f\uff01-\uff0f"
)

PATTERN = (
    r"'(?:ll|re|ve|[dmst])"  # the second half of an English contraction
    # a word: ASCII letters and whatever is none of the others
    rf"| ?[^{_BLANK}{_BREAK}{_DIGIT}{_SIGN}]{{1,{LONGEST - 1}}}"
    rf"| ?[{_DIGIT}]{{1,3}}"
    rf"| ?[{_SIGN}]{{1,{LONGEST - 1}}}"
    rf"|[{_BLANK}]{{1,{LONGEST}}}"
    rf"|[{_BREAK}]{{1,{LONGEST}}}"
)
_PATTERN = re.compile(PATTERN)
_HALF_SURROGATE = re.compile("[\ud800-\udfff]")


def whole(text: str) -> str:
    """The text with U+FFFD for half surrogates, which are no characters and have no bytes in
    UTF-8.
    """
    return text if text.isascii() else _HALF_SURROGATE.sub("\ufffd", text)


def split(text: str) -> list[str]:
    """The pre-tokens of a text in order; joined they are `whole(text)`."""
    return _PATTERN.findall(whole(text))


def count(texts: Iterable[str]) -> Counter[str]:
    """How often each pre-token occurs in a stream of texts; needs memory for the distinct ones
    only.
    """
    counts: Counter[str] = Counter()
    for text in texts:
        counts.update(split(text))
    return counts
