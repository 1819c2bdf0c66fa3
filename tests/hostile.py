"""Texts that break tokenizers elsewhere: shared by the tests of pre-tokens and of tokenizers."""

from hypothesis import strategies as st

any_text = st.text(st.characters(exclude_categories=["Cs"]))
blanks = [" ", "  ", "\t", "\n", "\r\n", "\n\n", "\x85", "\u2028", "\u200b", "\ufeff"]
words = [
    "a",
    "Aa",
    "don't",
    "'s",
    "'",
    "é",
    "e\u0301",
    "ß",
    "中文",
    "ش",
    "\u202e",
    "\u200d",
    "👩\u200d👧",
    "🇩🇪",
    "😀",
]
others = [
    "\0",
    "\x1f",
    "\ufffd",
    "\U0010ffff",
    "1",
    "12345",
    "٣",
    "-",
    "...",
    "<|endoftext|>",
    "<|document|>",
]
mixtures = st.lists(st.sampled_from([*blanks, *words, *others]), max_size=40).map("".join)
texts = st.one_of(any_text, mixtures)

LONG = {
    "one letter": "a" * 100_000,
    "spaces": " " * 100_000,
    "newlines": "\n" * 100_000,
    "digits": "7" * 100_000,
    "signs": "=" * 100_000,
    "apostrophes": "'" * 100_000,
    "combining marks": "e" + "\u0301" * 100_000,
    "emoji with joiners": "👩\u200d👩\u200d👧" * 20_000,
    "right to left": "\u202eשלמ" * 20_000,
    "control characters": "".join(map(chr, range(32))) * 3_000,
    "nothing": "\0" * 100_000,
    "line ends": "\r\n\n\r " * 20_000,
    "spaces before letters": "  a" * 30_000,
    "every plane": "".join(
        chr(point) for point in range(0, 0x110000, 11) if not 0xD800 <= point < 0xE000
    ),
}
