"""NoProp (Li, Teh & Pascanu 2025), for next tokens: each block alone denoises the answer.

    input of block k = embedding + label a w[target] + noise (1 - a) sigma z,    a = (k - 1) / K

Block k of K does not read the output of the blocks below it. It reads the embedding, a share a of
the readout's row w of the true next token, and normal noise z; it is trained to let the head
predict the next token from its output. The first block reads the embedding alone, as at inference,
and trains it. sigma gives z the mean norm of the readout's rows, so with noise 1 it is as strong as
the answer.

No block waits for another, forward or backward. Autograd is exact within a block. The head is
trained by the last block's loss alone; the other losses only pass through it. With one block the
rule is backprop. At inference blocks do run one after another, and each reads the output of those
below instead of the noisy answer it was trained on: an uncertain answer has a form it has never
seen, and a wrong answer it has been trained to trust. So answers helped little in short trials on
text (studies/learning_rules/README.md): with a small label they came within a few hundredths of a
bit of no answer at all (both options at 0, each block alone on the embedding), on either side.
Cost: that of backprop, a pass through the head for each block, and one more forward pass for the
reported loss.
"""

import torch
from pydantic import Field
from torch import Tensor

from lmlab.core.errors import UserError
from lmlab.core.params import Params
from lmlab.model import noise
from lmlab.model.models.base import LanguageModel, next_token_loss
from lmlab.training.learning_rules._detached_blocks import leaf_copy
from lmlab.training.learning_rules.base import LearningRule


class Options(Params):
    """Options of the rule."""

    label: float = Field(ge=0)
    noise: float = Field(ge=0)


class NoProp(LearningRule):
    """It has no state. The readout's rows stand for the answers, fixed within a step.

    Under a parametrisation that follows the width they shrink as the width grows and the stream
    does not, so they are multiplied by the model's `width_ratio`.
    """

    backward = False

    def __init__(self, options: Options, model: LanguageModel) -> None:
        super().__init__()
        if model.readout is None or not model.plain_stream:
            raise UserError(
                "params.yaml: train.learning_rule: noprop adds the readout's rows to the blocks'"
                " inputs, so both must have one width; set train.model to one such as transformer,"
                " with models.transformer.residual at plain"
            )
        self.label = options.label
        self.noise = options.noise

    def assign_gradients(
        self, model: LanguageModel, tokens_BT: Tensor, targets_BT: Tensor
    ) -> Tensor:
        last = len(model.blocks) - 1
        x_BTD = model.embed(tokens_BT)
        for number, block in enumerate(model.blocks):
            if number > 0:
                embedded_BTD = model.embed(tokens_BT).detach()
                share = number / len(model.blocks)
                with noise.within(f"input of block {number}"):
                    x_BTD = self._with_answer(model, embedded_BTD, targets_BT, share)
            y_BTD = block(x_BTD)
            if number == last:
                loss = next_token_loss(model.head(y_BTD), targets_BT)
                torch.autograd.backward(loss)
            else:
                leaf_BTD = leaf_copy(y_BTD)
                local_loss = next_token_loss(model.head(leaf_BTD), targets_BT)
                grad_y = torch.autograd.grad(
                    local_loss, leaf_BTD
                )  # leaves the head's gradients alone
                torch.autograd.backward(y_BTD, grad_y)
        if last == 0:
            return loss.detach()
        with torch.no_grad():
            return next_token_loss(model(tokens_BT), targets_BT)

    def _with_answer(
        self, model: LanguageModel, x_BTD: Tensor, targets_BT: Tensor, share: float
    ) -> Tensor:
        assert model.readout is not None
        rows_VD = model.width_ratio * model.readout.weight.detach()
        sigma = rows_VD.norm(dim=-1).mean() / rows_VD.shape[-1] ** 0.5
        noise_BTD = self.noise * (1 - share) * sigma * noise.normal(x_BTD)
        return x_BTD + self.label * share * rows_VD[targets_BT] + noise_BTD
