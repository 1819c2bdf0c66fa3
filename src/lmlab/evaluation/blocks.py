"""What each of many equal stretches of a text costs a model: how much a mean over the text owes to
which text it was.
"""

import numpy as np
import pandas as pd

from lmlab.data.tokenizers.base import Ids
from lmlab.model.scoring import Score

BLOCKS = 100
LEAST_BYTES = 64
"""In a block: a shorter text has fewer blocks."""
COLUMNS = ("block", "bytes", "nats")


def table(scored: Score, stream: Ids, token_bytes: list[bytes]) -> pd.DataFrame:
    """A row for each block, in the order of the text: its number, the bytes of its tokens, and what
    those cost in nats.

    Blocks are equal in bytes of the raw text, so those of models with different tokenizers are
    about the same text; a token belongs, whole, to the block in which it begins. Tokens without
    bytes of their own count where they stand.
    """
    size_N = np.array([len(piece) for piece in token_bytes])[stream[1:]]
    begins_N = np.cumsum(size_N) - size_N
    total = int(size_N.sum())
    count = max(1, min(BLOCKS, total // LEAST_BYTES))
    block_N = np.minimum(begins_N * count // max(1, total), count - 1)
    nats_N = np.nan_to_num(scored.nats_by_target, nan=0.0)
    columns = {
        "block": np.arange(count),
        "bytes": np.bincount(block_N, weights=size_N, minlength=count).astype(np.int64),
        "nats": np.bincount(block_N, weights=nats_N, minlength=count),
    }
    return pd.DataFrame(columns)
