"""Pieces of held-out text for the page to begin with."""

from pathlib import Path

import pyarrow.parquet as pq

PIECES = 8
CHARACTERS = 600


def pieces(corpus: Path, split: str = "validation") -> list[str]:
    """Up to PIECES pieces, evenly spaced over a split, each from the beginning of a line or of a
    document; none where there is no corpus.
    """
    file = corpus / f"{split}.parquet"
    if not file.exists():
        return []
    text = "\n".join(pq.read_table(file, columns=["text"])["text"].to_pylist())
    found = []
    for number in range(PIECES):
        start = number * max(0, len(text) - CHARACTERS) // PIECES
        line = text.find("\n\n", start)
        start = line + 2 if 0 <= line - start < CHARACTERS else start
        found.append(text[start : start + CHARACTERS])
    return list(dict.fromkeys(piece for piece in found if piece.strip()))
