"""text8: 100,000,000 characters of English Wikipedia cleaned to a-z and space, by URL."""

import io
import zipfile
from collections.abc import Iterator
from typing import Any

from lmlab.core.params import Params
from lmlab.data import fetching
from lmlab.data.corpora.base import PIECE_CHARACTERS, Corpus, Document

ADDRESS = "http://mattmahoney.net/dc/text8.zip"
# of the archive, not of the text in it
SHA256 = "a6640522afe85d1963ad56c05b0ede0a0c000dddc9671758a6cc09b7a38e5232"


class Options(Params):
    """This corpus has none."""


class Text8(Corpus):
    """One document, read in pieces."""

    source = ADDRESS
    licence = "Wikipedia's (CC BY-SA)"

    def __init__(self, options: Options) -> None:
        pass

    def documents(self) -> Iterator[Document]:
        archive = fetching.url(ADDRESS, SHA256, "text8.zip")
        with zipfile.ZipFile(archive) as opened, opened.open("text8") as raw:
            text = io.TextIOWrapper(raw, encoding="utf-8", newline="")
            yield Document("text8", iter(lambda: text.read(PIECE_CHARACTERS), ""))

    def facts(self) -> dict[str, Any]:
        return {"archive_sha256": SHA256}
