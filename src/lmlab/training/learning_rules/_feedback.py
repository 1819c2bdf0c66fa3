"""Backprop in which linear maps send back something other than grad_y W.

Feedback alignment and its relatives replace the transposed weight, direct feedback the whole
signal.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from lmlab.model.models.base import LanguageModel, next_token_loss
from lmlab.training.learning_rules._linear_maps import (
    LinearMapCall,
    LinearMapMode,
    linear_weights,
)

InputGradient = Callable[[LinearMapCall, Tensor], Tensor]
"""What a map sends back: from the call and grad_y, a tensor in the shape of the map's input."""


def state_name(parameter_name: str) -> str:
    """A parameter's dotted name in a form that torch allows for a module's own state."""
    return parameter_name.replace(".", "/")


def draw_feedback(weight: Tensor, scale: float = 1.0, shape: Sequence[int] | None = None) -> Tensor:
    """Normal random numbers whose root mean square is `scale` times the weight's."""
    feedback = weight.detach().new_empty(shape or weight.shape)
    if weight.is_meta:
        return feedback
    root_mean_square = weight.detach().square().mean().sqrt()
    return feedback.normal_().mul_(scale * root_mean_square)


def replaced_input_gradients(
    model: LanguageModel, tokens_BT: Tensor, input_gradient: InputGradient
) -> LinearMapMode:
    """A mode in which each linear map and convolution sends back `input_gradient(call, grad_y)`.

    The forward pass stays the same bit for bit. Weights and biases get the exact gradient for the
    grad_y that arrives at their map. Everything else keeps its exact gradient: look-ups, norms,
    activations, gates, attention's products, and products that are no call of torch's `linear` or
    `conv1d`.
    """

    def replace(call: LinearMapCall, x: Tensor) -> Tensor:
        if call.is_lookup:
            return call.output(x)
        y = call.output(x.detach())
        output: Tensor = _ReplaceInputGradient.apply(x, y, partial(input_gradient, call))  # type: ignore[no-untyped-call]
        return output

    return LinearMapMode(linear_weights(model), tokens_BT, replace)


def backprop_with(
    input_gradient: InputGradient, model: LanguageModel, tokens_BT: Tensor, targets_BT: Tensor
) -> Tensor:
    """Add backprop's gradients with replaced input gradients; return the detached mean loss."""
    with replaced_input_gradients(model, tokens_BT, input_gradient):
        loss = next_token_loss(model(tokens_BT), targets_BT)
    torch.autograd.backward(loss)
    return loss.detach()


class _ReplaceInputGradient(torch.autograd.Function):
    """Forward: y unchanged. Backward: grad_y to y, and `input_gradient(grad_y)` to x.

    y must not depend on x in autograd's graph, or x would get its exact gradient as well.
    """

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, y: Tensor, input_gradient: Callable[[Tensor], Tensor]
    ) -> Tensor:
        ctx.input_gradient = input_gradient
        return y.view_as(y)

    @staticmethod
    def backward(ctx: Any, grad_y: Tensor) -> tuple[Tensor | None, Tensor, None]:
        grad_x = ctx.input_gradient(grad_y) if ctx.needs_input_grad[0] else None
        return grad_x, grad_y, None
