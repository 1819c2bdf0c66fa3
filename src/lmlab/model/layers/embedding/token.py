"""The plain embedding: one vector for each token of the vocabulary."""

from torch import Tensor, nn

from lmlab.core.params import Params
from lmlab.model.layers.embedding.base import Embedding
from lmlab.model.layers.memory import Memory


class Options(Params):
    """This embedding has none."""


class Token(Embedding):
    """A table of vocabulary x width."""

    def __init__(self, options: Options, vocabulary: int, width: int) -> None:
        super().__init__()
        self.tokens = nn.Embedding(vocabulary, width)

    def forward(self, tokens_BT: Tensor, memory: Memory | None = None) -> Tensor:
        return self.tokens(tokens_BT)
