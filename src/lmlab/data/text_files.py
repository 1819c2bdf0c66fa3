"""Files of text in UTF-8, compressed by gzip or not; what is no such file is refused with what it
seems to be instead.
"""

import gzip
import io
import re
import unicodedata
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TextIO

from lmlab.core.errors import UserError
from lmlab.data.globs import shown

HEAD_BYTES = 4096
MANY_ZEROS = 0.1
"""Share of zero bytes, which UTF-8 allows, above which something is no text in UTF-8."""
MANY_STRANGE = 0.01
"""Share of bytes or characters that texts do not hold, above which something is no text."""
CONTROL = {*range(32)} - {*b"\t\n\v\f\r\x1a\x1b"}
_CONVERT = "convert it with `iconv -f {} -t utf-8 OLD > NEW`"
_MARKS = {
    b"\xff\xfe\0\0": "utf-32",
    b"\0\0\xfe\xff": "utf-32",
    b"\xff\xfe": "utf-16",
    b"\xfe\xff": "utf-16",
}
_SIGNATURES = {
    rb"\x1f\x8b": "compressed by gzip; give it a name that ends in .gz",
    rb"PAR1": "a Parquet file; give it a name that ends in .parquet",
    rb"%PDF-": "a PDF; take the text out first, e.g. with `pdftotext`",
    rb"PK\x03\x04": "a zip archive, as .docx, .odt and .epub are; take the text out first",
    rb"\xd0\xcf\x11\xe0": "a document of an office program; save it as plain text in UTF-8",
    rb"BZh[1-9]1AY&SY": "compressed by bzip2; unpack it first",
    rb"\xfd7zXZ\0": "compressed by xz; unpack it first",
    rb"\x28\xb5\x2f\xfd": "compressed by zstd; unpack it first",
}


@contextmanager
def opened(path: Path, newline: str | None) -> Iterator[TextIO]:
    """A text file without the byte order mark that some editors write; `newline` as for `open`.

    Raises UserError where the file cannot be read, is not whole or is not text in UTF-8.
    """
    try:
        with open(path, "rb") as raw:
            unpacked = gzip.GzipFile(fileobj=raw) if path.name.lower().endswith(".gz") else raw
            head = unpacked.peek(HEAD_BYTES)[:HEAD_BYTES]
            if signature := _signature(head):
                raise UserError(f"{shown(path)} is not UTF-8 but {signature}")
            with io.TextIOWrapper(unpacked, encoding="utf-8-sig", newline=newline) as file:
                yield file
    except UnicodeDecodeError as error:
        raise UserError(f"{shown(path)} is not UTF-8{_seems_to_be(error.object, error)}") from None
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise UserError(
            f"{shown(path)} is cut short, damaged or was not made by gzip ({error}); fetch it again"
        ) from None
    except OSError as error:
        raise UserError(f"{shown(path)} cannot be read: {error.strerror or error}") from None


def check_zeros(text: str, path: Path) -> None:
    """Raise UserError where a piece of text, though it is UTF-8, holds so many zero bytes that it
    cannot be text.
    """
    if text.count("\0") > MANY_ZEROS * len(text):
        first = text.index("\0")
        sample = text[first - first % 2 :][:HEAD_BYTES].encode()
        raise UserError(f"{shown(path)} is not UTF-8{_seems_to_be(sample)}")


def _signature(head: bytes) -> str:
    """What bytes at the beginning say that a file is, with advice; empty where they say nothing."""
    for mark, encoding in _MARKS.items():
        if head.startswith(mark):
            return f"{encoding.upper()}, as its byte order mark says; {_CONVERT.format(encoding)}"
    return next((what for signature, what in _SIGNATURES.items() if re.match(signature, head)), "")


def _seems_to_be(sample: bytes, error: UnicodeDecodeError | None = None) -> str:
    """What bytes that are no text in UTF-8 are likely to be, with advice, to go on from "is not
    UTF-8".
    """
    sample = sample[: len(sample) // 2 * 2][:HEAD_BYTES]
    if sum(sample.count(code) for code in CONTROL) > MANY_STRANGE * len(sample):
        # characters of one script share their high byte, so on its side there are fewer different
        # ones
        high_bytes = {"utf-16be": {*sample[::2]}, "utf-16le": {*sample[1::2]}}
        possible = [
            encoding for encoding in high_bytes if _is_text(sample.decode(encoding, "replace"))
        ]
        if possible:
            likeliest = min(possible, key=lambda encoding: len(high_bytes[encoding]))
            return (
                f" but seems to be UTF-16 without a byte order mark; {_CONVERT.format(likeliest)}"
            )
        return (
            " but seems to be binary, or text in another encoding; narrow the pattern to files"
            " of text"
        )
    bad = f" (byte {error.object[error.start]:#04x})" if error else ""
    if error and error.reason == "unexpected end of data":
        bad = " at its end: it is cut short in the middle of a character, or in another encoding"
    return (
        f"{bad}; find out its encoding (`file` guesses it) and {_CONVERT.format('ENCODING')},"
        " where ENCODING may be"
        " windows-1252 (western Europe), windows-1251 (Cyrillic), gb18030 (Chinese) or shift_jis"
        " (Japanese)"
    )


def _is_text(text: str) -> bool:
    """Whether nearly all of it are characters that there are and that a text may hold."""
    odd = sum(
        unicodedata.category(c) in ("Cc", "Cn", "Co", "Cs") and c not in "\t\n\r" for c in text
    )
    return odd + text.count("\ufffd") <= MANY_STRANGE * len(text)
