"""Direct feedback alignment, layer by layer (Nøkland 2016; Launay et al. 2020): each linear map
hears of the error at once.

What a linear map or convolution sends down is e B instead of grad_y W: the error at the logits, e =
dL/dlogits, times a fixed random matrix of its own. Exact stay: the gradients of weights for what
arrives at their map, so the readout's altogether, and everything between the maps: activations,
norms, attention's products, gates, residual connections, by which an error meant for one map also
reaches those below. It needs maps that see all tokens of a batch, position by position. It costs
what backprop does, or more where the vocabulary is larger than the model is wide, and V numbers for
each input of a map.
"""

import torch
from pydantic import Field
from torch import Tensor, nn

from lmlab.core.errors import UserError
from lmlab.core.params import Params
from lmlab.model.models.base import LanguageModel, next_token_loss
from lmlab.training.learning_rules._cutting import (
    Call,
    Rerouted,
    drawn_like,
    key,
    linear_weights,
    without_storage,
)
from lmlab.training.learning_rules.base import LearningRule
from lmlab.training.widths import fans_of, initial_power


class Options(Params):
    """Options of the rule."""

    feedback_scale: float = Field(gt=0)


class DirectFeedbackMicro(LearningRule):
    """Its state is a B for each map, vocabulary x the width of the map's input, as large as the
    map's weights at first.

    Where a parametrisation follows the width, B is as large as those are at the base width, and for
    an input that grows less by the ratio of the widths: what arrives there is then as large as a
    gradient is.
    """

    backward = True
    short_of_one_batch = (
        "it learns it in the end: what arrives at a weight is right at first at random alone"
    )

    def __init__(self, options: Options, model: LanguageModel) -> None:
        super().__init__()
        weights = linear_weights(model)
        for call in _calls(model):
            width = call.x_shape[2 if call.convolution is None else 1]
            weight = weights[call.name]
            scale = options.feedback_scale * _beside_weights(weight, width, model.width_ratio)
            self.register_buffer(
                key(call.name), drawn_like(weight, scale, (model.vocabulary_size, width))
            )

    def assign_gradients(
        self, model: LanguageModel, tokens_BT: Tensor, targets_BT: Tensor
    ) -> Tensor:
        error: list[Tensor] = []

        def down(call: Call, grad_y: Tensor) -> Tensor:
            feedback = self.get_buffer(key(call.name))
            return _placed(error[0].to(feedback.dtype) @ feedback, call).to(grad_y.dtype)

        with Rerouted(model, down):
            logits_BTV = model(tokens_BT)
        logits_BTV.register_hook(error.append)
        loss = next_token_loss(logits_BTV, targets_BT)
        torch.autograd.backward(loss)
        return loss.detach()


def _beside_weights(weight: nn.Parameter, width: int, ratio: float) -> float:
    """How large B is beside the weights of a map whose input is so wide, in a model so many times
    as wide as the base.
    """
    fans = fans_of("matrices", weight)
    of_each_channel = (
        width != weight.shape[1]
    )  # a depthwise convolution, whose fan-in is its kernel alone
    input_grows = fans.fan_in or (of_each_channel and fans.fan_out)
    return ratio ** (-float(input_grows) - initial_power(fans))


def _calls(model: LanguageModel) -> list[Call]:
    """Every use of a linear map in a forward pass. Raises UserError where one does not see the
    whole batch.
    """
    trial, (batch, time) = without_storage(model), (3, 2)
    with torch.no_grad(), Rerouted(trial, lambda call, grad_y: grad_y) as maps:
        trial(torch.zeros(batch, time, dtype=torch.long, device="meta"))
    for call in maps.calls:
        seen = (
            call.x_shape
            if call.convolution is None
            else (call.x_shape[0], call.y_shape[2], call.x_shape[1])
        )
        if tuple(seen[:-1]) != (batch, time):
            raise UserError(
                "params.yaml: train.learning_rule: direct_feedback_micro needs linear maps that"
                " see all tokens side by side;"
                f" {call.name.removesuffix('.weight')} does not; choose direct_feedback_macro, or"
                " another train.model or"
                " feed-forward layer"
            )
    return maps.calls


def _placed(e_BTD: Tensor, call: Call) -> Tensor:
    """As the map's input is laid out; what a convolution reads before the first position gets
    nothing.
    """
    if call.convolution is None:
        return e_BTD
    return nn.functional.pad(e_BTD.transpose(1, 2), (call.x_shape[2] - e_BTD.shape[1], 0))
