"""Block-local losses (Nøkland & Eidnes 2019; Belilovsky et al. 2019): every block learns from a
loss at its own output.

Each block but the last has a head of its own (a norm without weights, then a linear map to the
vocabulary), which predicts the next token and learns beside it; the last block has the model's. No
gradient leaves a block, but for the embedding, which belongs to the first. With `similarity`, a
block is also, or only, taught to make two positions' vectors as similar as the tokens that follow
them are (Nøkland & Eidnes 2019). One block alone learns by backprop. It costs what backprop does
and a readout for each block; on a machine that lets each go when it is done, one block's
activations would be enough.
"""

from pydantic import Field
from torch import Tensor, nn

from lmlab.core.params import Params
from lmlab.model.models.base import LanguageModel, next_token_loss
from lmlab.training.learning_rules._cutting import LocalHeads, Pieces, teach_by_local_losses
from lmlab.training.learning_rules.base import LearningRule
from lmlab.training.optimizers.base import Groups
from lmlab.training.widths import by_fans


class Options(Params):
    """Options of the rule."""

    similarity: float = Field(ge=0, le=1)


class BlockLocal(LearningRule):
    """A block's loss is (1 - similarity) times its prediction's plus similarity times that of
    similarities.
    """

    backward = False

    def __init__(self, options: Options, model: LanguageModel) -> None:
        super().__init__()
        self.similarity, self.vocabulary_size = options.similarity, model.vocabulary_size
        self.heads = LocalHeads(model)
        self.follow_width(options, model)

    def own_groups(self, model: LanguageModel) -> Groups:
        return by_fans({"readout": list(self.parameters())})

    def assign_gradients(
        self, model: LanguageModel, tokens_BT: Tensor, targets_BT: Tensor
    ) -> Tensor:
        pieces = Pieces(model, tokens_BT)
        losses = [
            self._loss(number, s_BTS, targets_BT)
            for number, s_BTS in enumerate(pieces.copies[1:-1])
        ]
        last = next_token_loss(pieces.logits_BTV, targets_BT)
        teach_by_local_losses(pieces, [*losses, last], span=1)
        return last.detach()

    def _loss(self, number: int, s_BTS: Tensor, targets_BT: Tensor) -> Tensor:
        prediction = self.heads.loss(number, s_BTS, targets_BT)
        if not self.similarity:
            return prediction
        targets_BTV = nn.functional.one_hot(targets_BT, self.vocabulary_size).to(s_BTS.dtype)
        return (1 - self.similarity) * prediction + self.similarity * similarity_loss(
            s_BTS, targets_BTV
        )


def similarity_loss(s_BTS: Tensor, targets_BTV: Tensor) -> Tensor:
    """Mean squared difference between the similarities of positions' vectors and those of their
    targets.

    Both are cosines, each vector's mean taken off before; pairs are of positions in one window.
    Targets are vectors with a single 1: similar in full where they are the same token, else
    slightly opposed.
    """
    return (_cosines(s_BTS) - _cosines(targets_BTV)).square().mean()


def _cosines(x_BTD: Tensor) -> Tensor:
    """Between every two positions, shape (B, T, T)."""
    unit_BTD = nn.functional.normalize(x_BTD - x_BTD.mean(dim=-1, keepdim=True), dim=-1)
    return unit_BTD @ unit_BTD.mT
