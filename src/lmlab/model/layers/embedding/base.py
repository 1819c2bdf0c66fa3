"""What an embedding is."""

from abc import ABC, abstractmethod

from torch import Tensor, nn

from lmlab.model.layers.cache import Cache


class Embedding(nn.Module, ABC):
    """Final classes take `(options, vocabulary_size, width)`. A tied readout shares the weights of
    `tokens`.
    """

    tokens: nn.Embedding

    @abstractmethod
    def forward(self, tokens_BT: Tensor, cache: Cache | None = None) -> Tensor:
        """x_BTD; it may depend on tokens before each position, with a memory also on those of
        earlier calls.
        """
