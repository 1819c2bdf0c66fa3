"""Direct feedback alignment of layers (Nøkland 2016; Launay et al. 2020): errors skip layers.

    grad_x = e B        in place of grad_y W, at every linear map y = W x;  e = dL/dlogits, B fixed

Each linear map and convolution sends back the error at the logits times a fixed random matrix of
its own. The gradients of weights are exact for what arrives at their map, so the readout's are
exact altogether. Everything between the maps is exact as well (activations, norms, attention's
products, gates, residual connections), so an error sent to one map also reaches those below it. The
maps must see all tokens of a batch, position by position. Cost: that of backprop, or more where the
vocabulary is larger than the model is wide, and V feedback weights for each input of a map.
"""

import torch
from pydantic import Field
from torch import Tensor, nn

from lmlab.core.errors import UserError
from lmlab.core.params import Params
from lmlab.model.models.base import LanguageModel, next_token_loss
from lmlab.training.learning_rules._feedback import (
    draw_feedback,
    replaced_input_gradients,
    state_name,
)
from lmlab.training.learning_rules._linear_maps import (
    LinearMapCall,
    LinearMapMode,
    linear_weights,
)
from lmlab.training.learning_rules._shapes import meta_copy
from lmlab.training.learning_rules.base import LearningRule
from lmlab.training.widths import fans_of, initial_power


class Options(Params):
    """Options of the rule."""

    feedback_scale: float = Field(gt=0)


class DirectFeedbackMicro(LearningRule):
    """Its state is a B_VD for each map, D the input width, as large as the map's initial weights.

    Under a parametrisation that follows the width, B is as large as those are at the base width,
    divided by the ratio of the widths for an input that grows with it: what arrives there then has
    the size of a gradient.
    """

    backward = True
    cannot_overfit = (
        "it does so in the end, but at first feedback agrees with the gradient by chance alone"
    )

    def __init__(self, options: Options, model: LanguageModel) -> None:
        super().__init__()
        weights = linear_weights(model)
        for call in _calls(model):
            width = call.x_shape[1 if call.is_convolution else 2]
            weight = weights[call.name]
            relative_size = _relative_size(weight, width, model.width_ratio)
            scale = options.feedback_scale * relative_size
            feedback_VD = draw_feedback(weight, scale, (model.vocabulary_size, width))
            self.register_buffer(state_name(call.name), feedback_VD)

    def assign_gradients(
        self, model: LanguageModel, tokens_BT: Tensor, targets_BT: Tensor
    ) -> Tensor:
        errors: list[Tensor] = []

        def input_gradient(call: LinearMapCall, grad_y: Tensor) -> Tensor:
            feedback_VD = self.get_buffer(state_name(call.name))
            [error_BTV] = errors
            signal_BTD = error_BTV.to(feedback_VD.dtype) @ feedback_VD
            return _laid_out(signal_BTD, call).to(grad_y.dtype)

        with replaced_input_gradients(model, tokens_BT, input_gradient):
            logits_BTV = model(tokens_BT)
        logits_BTV.register_hook(errors.append)  # the backward pass reaches the logits first
        loss = next_token_loss(logits_BTV, targets_BT)
        torch.autograd.backward(loss)
        return loss.detach()


def _relative_size(weight: nn.Parameter, input_width: int, width_ratio: float) -> float:
    """The size of B relative to a map's weights, in a model `width_ratio` times the base width."""
    fans = fans_of("matrices", weight)
    is_depthwise = input_width != weight.shape[1]  # its fan-in is its kernel alone
    input_grows = fans.fan_in or (is_depthwise and fans.fan_out)
    return width_ratio ** (-float(input_grows) - initial_power(fans))


def _calls(model: LanguageModel) -> list[LinearMapCall]:
    """Every call of a linear map or convolution in a forward pass, found without computing values.

    Raises UserError where one does not see the whole batch.
    """
    trial = meta_copy(model)
    tokens_BT = torch.zeros(3, 2, dtype=torch.long, device="meta")
    calls: list[LinearMapCall] = []

    def note(call: LinearMapCall, x: Tensor) -> Tensor:
        y = call.output(x)
        if call.is_lookup:
            return y
        positions = (x.shape[0], y.shape[2]) if call.is_convolution else x.shape[:-1]
        if tuple(positions) != tuple(tokens_BT.shape):
            raise UserError(
                "params.yaml: train.learning_rule: direct_feedback_micro needs linear maps that"
                f" see all tokens side by side; {call.name.removesuffix('.weight')} does not;"
                " choose direct_feedback_macro, or another train.model or feed-forward layer"
            )
        calls.append(call)
        return y

    with torch.no_grad(), LinearMapMode(linear_weights(trial), tokens_BT, note):
        trial(tokens_BT)
    return calls


def _laid_out(signal_BTD: Tensor, call: LinearMapCall) -> Tensor:
    """The signal in the layout of the map's input; a convolution's padding gets 0."""
    if not call.is_convolution:
        return signal_BTD
    padding = call.x_shape[2] - signal_BTD.shape[1]
    return nn.functional.pad(signal_BTD.transpose(1, 2), (padding, 0))
