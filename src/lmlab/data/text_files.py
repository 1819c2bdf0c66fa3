"""Open text files in UTF-8, with or without gzip; for any other file say what it seems to be."""

import codecs
import gzip
import io
import re
import unicodedata
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TextIO

from lmlab.core.errors import UserError, printable

HEAD_BYTES = 4096
MANY_ZEROS = 0.1
"""Share of zero bytes, which UTF-8 allows, above which a file is not text in UTF-8."""
MANY_STRANGE = 0.01
"""Share of bytes or characters that no text holds, above which a file is not text."""
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
    """Open a text file, without the byte order mark that some editors write; `newline` as for
    `open`.

    Raises UserError where the file cannot be read, is truncated or is not text in UTF-8.
    """
    try:
        with open(path, "rb") as raw:
            unpacked = gzip.GzipFile(fileobj=raw) if path.name.lower().endswith(".gz") else raw
            head = unpacked.peek(HEAD_BYTES)[:HEAD_BYTES]
            if file_type := _file_type(head):
                raise UserError(f"{printable(path)} is not UTF-8 but {file_type}")
            with io.TextIOWrapper(unpacked, encoding="utf-8-sig", newline=newline) as file:
                yield file
    except UnicodeDecodeError as error:
        diagnosis = _diagnosis(error.object, error)
        raise UserError(f"{printable(path)} is not UTF-8{diagnosis}") from None
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise UserError(
            f"{printable(path)} is cut short, damaged or was not made by gzip ({error}); fetch it"
            " again"
        ) from None
    except OSError as error:
        raise UserError(f"{printable(path)} cannot be read: {error.strerror or error}") from None


def check_zeros(text: str, path: Path) -> None:
    """Raise UserError where a piece of valid UTF-8 has too many zero bytes to be text."""
    if text.count("\0") > MANY_ZEROS * len(text):
        first = text.index("\0")
        sample = text[first - first % 2 :][:HEAD_BYTES].encode()
        raise UserError(f"{printable(path)} is not UTF-8{_diagnosis(sample)}")


def _file_type(head: bytes) -> str:
    """The type of a file by its first bytes, with advice; empty where they are no known
    signature.
    """
    for mark, encoding in _MARKS.items():
        if head.startswith(mark):
            return f"{encoding.upper()}, as its byte order mark says; {_CONVERT.format(encoding)}"
    for signature, file_type in _SIGNATURES.items():
        if re.match(signature, head):
            return file_type
    return ""


def _diagnosis(sample: bytes, error: UnicodeDecodeError | None = None) -> str:
    """What bytes that are not text in UTF-8 probably are, with advice: the end of a message that
    begins "... is not UTF-8".
    """
    sample = sample[: len(sample) // 2 * 2][:HEAD_BYTES]
    if sum(map(sample.count, CONTROL)) > MANY_STRANGE * len(sample):
        encoding = _utf_16(sample)
        if encoding is not None:
            return f" but seems to be UTF-16 without a byte order mark; {_CONVERT.format(encoding)}"
        return (
            " but seems to be binary, or text in another encoding; narrow the pattern to files"
            " of text"
        )
    position = f" (byte {error.object[error.start]:#04x})" if error else ""
    if error and _is_cut_short(error):
        position = (
            " at its end: it is cut short in the middle of a character, or in another encoding"
        )
    return (
        f"{position}; find out its encoding (`file` guesses it) and {_CONVERT.format('ENCODING')},"
        " where ENCODING may be windows-1252 (western Europe), windows-1251 (Cyrillic), gb18030"
        " (Chinese) or shift_jis (Japanese)"
    )


def _utf_16(sample: bytes) -> str | None:
    """The variant of UTF-16 that bytes without a byte order mark are likely to be in, if any."""
    high_bytes = {"utf-16be": {*sample[::2]}, "utf-16le": {*sample[1::2]}}
    possible = [encoding for encoding in high_bytes if _is_text(sample.decode(encoding, "replace"))]
    # characters of one script share their high byte, so it takes fewer values than the low one
    return min(possible, key=lambda encoding: len(high_bytes[encoding]), default=None)


def _is_cut_short(error: UnicodeDecodeError) -> bool:
    """Whether the bytes end within a character that would be valid if it were complete."""
    if error.end < len(error.object):
        return False
    try:
        codecs.utf_8_decode(error.object[error.start :], "strict", False)
    except UnicodeDecodeError:
        return False
    return True


def _is_text(text: str) -> bool:
    """Whether nearly all characters are assigned ones that a text may hold."""
    odd = sum(
        unicodedata.category(c) in ("Cc", "Cn", "Co", "Cs") and c not in "\t\n\r" for c in text
    )
    return odd + text.count("\ufffd") <= MANY_STRANGE * len(text)
