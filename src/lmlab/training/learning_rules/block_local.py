"""Block-local losses (Nøkland & Eidnes 2019; Belilovsky et al. 2019): every block has its own loss.

    L_k = (1 - similarity) * cross-entropy_k + similarity * mean (cos(s_i, s_j) - cos(t_i, t_j))^2

Each block but the last has an output head of its own (RMS normalisation, then a linear map to the
vocabulary), which predicts the next token and is trained with it; the last block has the model's
head and plain cross-entropy. No gradient leaves a block, except to the embedding, which counts as
part of the first. The similarity loss asks that the vectors s of two positions in a window be as
similar as the one-hot vectors t of the tokens that follow them (Nøkland & Eidnes 2019). A model of
one block is trained by backprop. Cost: that of backprop and an output head for each block; hardware
that releases each block when it is done would need one block's activations only.
"""

from pydantic import Field
from torch import Tensor, nn

from lmlab.core.params import Params
from lmlab.model.models.base import LanguageModel, next_token_loss
from lmlab.training.learning_rules._detached_blocks import DetachedBlocks
from lmlab.training.learning_rules._local_losses import LocalHeads, backprop_local_losses
from lmlab.training.learning_rules.base import LearningRule
from lmlab.training.optimizers.base import Groups
from lmlab.training.widths import by_fans


class Options(Params):
    """Options of the rule."""

    similarity: float = Field(ge=0, le=1)


class BlockLocal(LearningRule):
    """Its own parameters are the blocks' output heads."""

    backward = False

    def __init__(self, options: Options, model: LanguageModel) -> None:
        super().__init__()
        self.similarity = options.similarity
        self.vocabulary_size = model.vocabulary_size
        self.heads = LocalHeads(model)
        self.follow_width(options, model)

    def own_groups(self, model: LanguageModel) -> Groups:
        return by_fans({"readout": list(self.parameters())})

    def assign_gradients(
        self, model: LanguageModel, tokens_BT: Tensor, targets_BT: Tensor
    ) -> Tensor:
        blocks = DetachedBlocks(model, tokens_BT)
        losses = [
            self._loss(number, s_BTS, targets_BT)
            for number, s_BTS in enumerate(blocks.leaves[1:-1])
        ]
        final_loss = next_token_loss(blocks.logits_BTV, targets_BT)
        backprop_local_losses(blocks, [*losses, final_loss], span=1)
        return final_loss.detach()

    def _loss(self, number: int, s_BTS: Tensor, targets_BT: Tensor) -> Tensor:
        prediction_loss = self.heads.loss(number, s_BTS, targets_BT)
        if not self.similarity:
            return prediction_loss
        targets_BTV = nn.functional.one_hot(targets_BT, self.vocabulary_size).to(s_BTS.dtype)
        return (1 - self.similarity) * prediction_loss + self.similarity * similarity_loss(
            s_BTS, targets_BTV
        )


def similarity_loss(s_BTS: Tensor, targets_BTV: Tensor) -> Tensor:
    """Mean squared difference between the similarities of positions' vectors and of their targets.

    Similarities are cosines after subtracting each vector's mean, for all pairs of positions in a
    window. Equal one-hot targets have similarity 1, different ones slightly below 0.
    """
    return (_cosines(s_BTS) - _cosines(targets_BTV)).square().mean()


def _cosines(x_BTD: Tensor) -> Tensor:
    """Between every two positions of a window, shape (B, T, T)."""
    centred_BTD = x_BTD - x_BTD.mean(dim=-1, keepdim=True)
    unit_BTD = nn.functional.normalize(centred_BTD, dim=-1)
    return unit_BTD @ unit_BTD.mT
