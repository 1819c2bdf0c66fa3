"""The corpus's text for the page: pieces to begin with, and to learn from."""

from pathlib import Path

import pyarrow.parquet as pq

PIECES = 8
CHARACTERS = 600


def whole_text(corpus: Path, split: str) -> str:
    """All of a split; empty where there is no corpus."""
    file = corpus / f"{split}.parquet"
    if not file.exists():
        return ""
    return "\n".join(pq.read_table(file, columns=["text"])["text"].to_pylist())


def pieces(corpus: Path, split: str = "validation", count: int = PIECES) -> list[str]:
    """Up to `count` pieces, evenly spaced over a split, each from the beginning of a line or of a
    document; none where there is no corpus.
    """
    text = whole_text(corpus, split)
    found = []
    for number in range(count):
        start = number * max(0, len(text) - CHARACTERS) // count
        line = text.find("\n\n", start)
        start = line + 2 if 0 <= line - start < CHARACTERS else start
        found.append(text[start : start + CHARACTERS])
    return list(dict.fromkeys(piece for piece in found if piece.strip()))
