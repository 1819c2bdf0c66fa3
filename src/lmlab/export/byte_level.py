"""Bytes as printable characters, one for each, as GPT-2's vocabulary and all after it write them
(Radford et al. 2019).
"""


def _byte_characters() -> list[str]:
    """The character of each byte: itself where it can be seen, otherwise one from U+0100 on."""
    seen = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    others = [value for value in range(256) if value not in seen]
    shifted = {value: chr(0x100 + number) for number, value in enumerate(others)}
    return [shifted.get(value, chr(value)) for value in range(256)]


CHARACTERS = _byte_characters()
_BYTES = {character: value for value, character in enumerate(CHARACTERS)}


def spelled(piece: bytes) -> str:
    """Bytes as a string of CHARACTERS."""
    return "".join(CHARACTERS[value] for value in piece)


def unspelled(name: str) -> bytes:
    """The inverse of `spelled`. Raises KeyError for a string that it never gives."""
    return bytes(_BYTES[character] for character in name)
