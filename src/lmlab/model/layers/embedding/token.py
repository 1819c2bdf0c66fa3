"""The plain embedding: one learned vector for each token of the vocabulary."""

from torch import Tensor, nn

from lmlab.core.params import Params
from lmlab.model.layers.cache import Cache
from lmlab.model.layers.embedding.base import Embedding


class Options(Params):
    """This embedding has none."""


class Token(Embedding):
    """tokens[id], with a table of vocabulary x width."""

    def __init__(self, options: Options, vocabulary_size: int, width: int) -> None:
        super().__init__()
        self.tokens = nn.Embedding(vocabulary_size, width)

    def forward(self, tokens_BT: Tensor, cache: Cache | None = None) -> Tensor:
        return self.tokens(tokens_BT)
