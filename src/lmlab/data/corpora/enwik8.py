"""enwik8: the first 100,000,000 bytes of an English Wikipedia dump, with markup, by URL (Hutter
Prize).
"""

import io
import zipfile
from collections.abc import Iterator
from typing import Any

from lmlab.core.params import Params
from lmlab.data import fetching
from lmlab.data.corpora.base import PIECE_CHARACTERS, Corpus, Document

ADDRESS = "http://mattmahoney.net/dc/enwik8.zip"
# of the archive, not of the text in it
SHA256 = "547994d9980ebed1288380d652999f38a14fe291a6247c157c3d33d4932534bc"


class Options(Params):
    """This corpus has none."""


class Enwik8(Corpus):
    """One document, read in pieces."""

    source = ADDRESS
    licence = "Wikipedia's (CC BY-SA)"

    def __init__(self, options: Options) -> None:
        pass

    def documents(self) -> Iterator[Document]:
        archive = fetching.url(ADDRESS, SHA256, "enwik8.zip")
        with zipfile.ZipFile(archive) as opened, opened.open("enwik8") as raw:
            text = io.TextIOWrapper(raw, encoding="utf-8", newline="")
            yield Document("enwik8", iter(lambda: text.read(PIECE_CHARACTERS), ""))

    def facts(self) -> dict[str, Any]:
        return {"archive_sha256": SHA256}
