"""TinyStories (Eldan & Li 2023): short stories in a small child's words, by URL.

The file `valid` has 19 MB, `train` 1.9 GB.
"""

from collections.abc import Iterator
from typing import Any, Literal

from lmlab.core.params import Params
from lmlab.data import fetching
from lmlab.data.corpora.base import Corpus, Document

FOLDER = "https://huggingface.co/datasets/roneneldan/TinyStories/resolve/main"
SHA256 = {
    "train": "c5cf5e22ff13614e830afbe61a99fbcbe8bcb7dd72252b989fa1117a368d401f",
    "valid": "94e431816c4cce81ff71e4408ff8d3bda9a42e8d2663986697c3954288cb38b4",
}
END_OF_STORY = "<|endoftext|>"


class Options(Params):
    """Options of the corpus."""

    file: Literal["train", "valid"]


class TinyStories(Corpus):
    """One document per story."""

    licence = "CDLA-Sharing-1.0"

    def __init__(self, options: Options) -> None:
        self.file = options.file
        self.source = f"{FOLDER}/TinyStories-{self.file}.txt"

    def documents(self) -> Iterator[Document]:
        path = fetching.url(self.source, SHA256[self.file], f"TinyStories-{self.file}.txt")
        story: list[str] = []
        number = 0
        with open(path, encoding="utf-8", errors="replace") as lines:
            for line in lines:
                if line.strip() != END_OF_STORY:
                    story.append(line)
                elif text := "".join(story).strip():
                    yield Document(f"story-{number}", [text + "\n"])
                    story = []
                    number += 1
        if text := "".join(story).strip():
            yield Document(f"story-{number}", [text + "\n"])

    def facts(self) -> dict[str, Any]:
        return {"archive_sha256": SHA256[self.file]}
