"""What a text costs without any neural network: a reading of a model's loss says little until these
stand beside it.

Every reference sees the train split's stream of ids and is charged for the same tokens of the same
split as the model.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from lmlab.evaluation.kneser_ney import KneserNey

Stream = NDArray[np.unsignedinteger[Any]]


def uniform(stream: Stream, bos: int, vocabulary_size: int) -> float:
    """Nats of a stream's text when each id that stands for text, all but `bos`, is equally
    likely.
    """
    return float((stream != bos).sum() * np.log(vocabulary_size - 1))


def unigram(train: Stream, stream: Stream, bos: int, vocabulary_size: int) -> float:
    """Nats under the frequencies of the train split's text, with one added to each count."""
    counts = np.bincount(train, minlength=vocabulary_size) + 1
    counts[bos] = 0  # never charged, so no share of the probability is kept for it
    text = stream[stream != bos]
    return float(-np.log(counts[text] / counts.sum()).sum())


class NGram:
    """An interpolated Kneser-Ney n-gram over a train stream, for several splits."""

    def __init__(self, train: Stream, bos: int, vocabulary_size: int, order: int) -> None:
        self.bos = bos
        self.model = KneserNey(train, vocabulary_size, order)

    def nats(self, stream: Stream) -> float:
        """Nats of a stream's text; BOS tokens give context and cost nothing, as for the model."""
        return float(self.model.nats(stream)[stream != self.bos].sum())
