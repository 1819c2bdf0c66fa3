"""NoProp (Li, Teh & Pascanu 2025), adapted to next tokens: every block learns alone to clean a
noisy copy of the answer.

Block k of K does not read what the blocks below it made. It reads embedding + label * share * (the
readout's row of the true next token) + noise * (1 - share) * z, with share (k - 1) / K, and is
asked that the head read the next token from its output. The first block reads the embedding alone,
as when the model is used; it teaches the embedding. z is normal, with the mean length of the
readout's rows for its root mean square length, so that noise 1 is as strong as the answer.

Replaced: the passes through all blocks, forward and backward: no block waits for another. Exact:
within a block; the head learns from the last block alone, the others only look through it. With one
block it is backprop. When the model is used blocks do run one after another, and each reads what
those below it made instead of the noisy answer it was taught on: a doubtful answer it has never
seen in that form, a wrong one it was taught to trust. So answers helped little in short trials on
text (studies/learning_rules/README.md): with a small label they came to within a few hundredths of
a bit of none at all (both options at 0, each block alone on the embedding), on either side. Costs
one more forward pass, for the loss that is reported.
"""

import torch
from pydantic import Field
from torch import Tensor

from lmlab.core.errors import UserError
from lmlab.core.params import Params
from lmlab.model import noise
from lmlab.model.models.base import LanguageModel, next_token_loss
from lmlab.training.learning_rules._relaxing import value_of
from lmlab.training.learning_rules.base import LearningRule


class Options(Params):
    """Options of the rule."""

    label: float = Field(ge=0)
    noise: float = Field(ge=0)


class NoProp(LearningRule):
    """The rows of the readout stand for the answers, fixed within a step.

    Where a parametrisation follows the width they shrink with it, which the stream does not, and
    are multiplied by the model's `width_ratio`.
    """

    backward = False

    def __init__(self, options: Options, model: LanguageModel) -> None:
        super().__init__()
        if model.readout is None or not model.plain_stream:
            raise UserError(
                "params.yaml: train.learning_rule: noprop shows blocks the readout's rows, which"
                " have to be as wide as the"
                " stream; set train.model to such as transformer, with"
                " models.transformer.residual at plain"
            )
        self.label, self.noise = options.label, options.noise

    def assign_gradients(
        self, model: LanguageModel, tokens_BT: Tensor, targets_BT: Tensor
    ) -> Tensor:
        last = len(model.blocks) - 1
        x_BTD = model.embed(tokens_BT)
        for number, block in enumerate(model.blocks):
            if number:
                embedded_BTD = model.embed(tokens_BT).detach()
                with noise.within(f"input of block {number}"):
                    x_BTD = self._with_answer(
                        model, embedded_BTD, targets_BT, number / len(model.blocks)
                    )
            y_BTD = block(x_BTD)
            if number == last:
                loss = next_token_loss(model.head(y_BTD), targets_BT)
                torch.autograd.backward(loss)
            else:
                value = value_of(y_BTD)
                slope = torch.autograd.grad(next_token_loss(model.head(value), targets_BT), value)
                torch.autograd.backward(y_BTD, slope)
        with torch.no_grad():
            return loss.detach() if not last else next_token_loss(model(tokens_BT), targets_BT)

    def _with_answer(
        self, model: LanguageModel, x_BTD: Tensor, targets_BT: Tensor, share: float
    ) -> Tensor:
        assert model.readout is not None
        rows_VD = model.width_ratio * model.readout.weight.detach()
        sigma = rows_VD.norm(dim=-1).mean() / rows_VD.shape[-1] ** 0.5
        noise_BTD = self.noise * (1 - share) * sigma * noise.normal(x_BTD)
        return x_BTD + self.label * share * rows_VD[targets_BT] + noise_BTD
