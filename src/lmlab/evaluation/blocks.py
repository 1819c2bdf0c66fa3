"""Cross-entropy in equal blocks of a text: how much a mean depends on which text it was."""

import numpy as np
import pandas as pd

from lmlab.data.tokenizers.base import Ids
from lmlab.model.scoring import Score

BLOCKS = 100
LEAST_BYTES = 64
"""In a block. A text too short for BLOCKS blocks of this size has fewer."""
COLUMNS = ("block", "bytes", "nats")


def table(scored: Score, stream: Ids, token_bytes: list[bytes]) -> pd.DataFrame:
    """One row for each block in text order: its number, its bytes, and the nats of its tokens.

    Blocks are equal in bytes of the raw text, so models with different tokenizers get blocks of
    about the same text. A token belongs as a whole to the block in which it begins. A token without
    bytes of its own belongs to the block at its position.
    """
    size_N = np.array([len(piece) for piece in token_bytes])[stream[1:]]
    start_N = np.cumsum(size_N) - size_N
    total_bytes = int(size_N.sum())
    count = max(1, min(BLOCKS, total_bytes // LEAST_BYTES))
    block_N = np.minimum(start_N * count // max(1, total_bytes), count - 1)
    nats_N = np.nan_to_num(scored.nats_by_target, nan=0.0)
    columns = {
        "block": np.arange(count),
        "bytes": np.bincount(block_N, weights=size_N, minlength=count).astype(np.int64),
        "nats": np.bincount(block_N, weights=nats_N, minlength=count),
    }
    return pd.DataFrame(columns)
