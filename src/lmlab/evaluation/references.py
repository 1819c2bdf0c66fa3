"""Cross-entropy of a text under models without gradients; a loss says little without them.

Every reference is fitted to the stream of ids of the train split and scored on the same tokens of
the same split as the model.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from lmlab.evaluation.kneser_ney import KneserNey

Stream = NDArray[np.unsignedinteger[Any]]


def uniform(stream: Stream, bos: int, vocabulary_size: int) -> float:
    """Nats of a stream's text when every id but `bos` is equally likely."""
    return float((stream != bos).sum() * np.log(vocabulary_size - 1))


def unigram(train: Stream, stream: Stream, bos: int, vocabulary_size: int) -> float:
    """Nats of a stream's text under the token frequencies of `train`, one added to each count."""
    counts = np.bincount(train, minlength=vocabulary_size) + 1
    counts[bos] = 0  # never scored, so it is left no share of the probability
    text = stream[stream != bos]
    return float(-np.log(counts[text] / counts.sum()).sum())


class NGram:
    """An interpolated Kneser-Ney n-gram fitted to `train`, for scoring several splits."""

    def __init__(self, train: Stream, bos: int, vocabulary_size: int, order: int) -> None:
        self.bos = bos
        self.model = KneserNey(train, vocabulary_size, order)

    def nats(self, stream: Stream) -> float:
        """Nats of a stream's text, where BOS tokens are context only, as for the model."""
        return float(self.model.nats(stream)[stream != self.bos].sum())
