"""What a learning rule is: how the loss on a batch becomes a gradient for every parameter."""

from abc import ABC, abstractmethod

from torch import Tensor, nn

from lmlab.models.base import LanguageModel


class LearningRule(nn.Module, ABC):
    """Final classes take `(options, model)`; they may look at the model's shape, but never keep the model itself.

    A rule is a Module, so what it learns or remembers (feedback weights, say) moves, is saved and resumed with it.
    """

    @abstractmethod
    def assign_gradients(self, model: LanguageModel, tokens_BT: Tensor, targets_BT: Tensor) -> Tensor:
        """Add the rule's estimate of the gradient of the mean loss to every `p.grad`; change nothing else of the model.

        Returns the mean loss in nats per token, detached. Called several times a step, it accumulates.
        """
