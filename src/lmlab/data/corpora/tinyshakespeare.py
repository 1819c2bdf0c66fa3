"""tiny-shakespeare as published (1,115,394 bytes), by URL: the text of many published results."""

from collections.abc import Iterator
from typing import Any

from lmlab.core.params import Params
from lmlab.data import fetching
from lmlab.data.corpora.base import Corpus, Document

ADDRESS = (
    "https://raw.githubusercontent.com/karpathy/char-rnn/master/data/tinyshakespeare/input.txt"
)
SHA256 = "86c4e6aa9db7c042ec79f339dcb96d42b0075e16b8fc2e86bf0ca57e2dc565ed"


class Options(Params):
    """This corpus has none."""


class TinyShakespeare(Corpus):
    """One document."""

    source = ADDRESS
    licence = "repository: MIT; the plays: public domain"

    def __init__(self, options: Options) -> None:
        pass

    def documents(self) -> Iterator[Document]:
        path = fetching.url(ADDRESS, SHA256, "tinyshakespeare.txt")
        yield Document("tinyshakespeare", [path.read_text(encoding="utf-8")])

    def facts(self) -> dict[str, Any]:
        return {"archive_sha256": SHA256}
