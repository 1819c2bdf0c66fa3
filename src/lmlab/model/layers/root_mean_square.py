"""Division by the root mean square (Zhang & Sennrich 2019), with a backward pass of its own.

torch has none for processors: differentiating its steps one by one takes three to eight times as
long as layer norm does.
"""

from typing import Any

import torch
from torch import Tensor, nn

EPSILON = 1e-5
"""Added to the mean square, so that nothing is divided by zero, where no option says how much."""


def rms_norm(x: Tensor, gain: Tensor | None = None, epsilon: float = EPSILON) -> Tensor:
    """Over the last dimension, x / sqrt(mean(x²) + epsilon), times the gain if there is one.

    Returns a contiguous tensor of the shape and dtype of x, as torch's own does.
    """
    x = (
        x.contiguous()
    )  # so that it is added up in the same order whether or not there is a gradient
    # torch's compiler can do neither with a derivative of our own nor gain by it
    if x.device.type != "cpu" or not torch.is_grad_enabled() or torch.compiler.is_compiling():
        return nn.functional.rms_norm(
            x, x.shape[-1:], None if gain is None else gain.to(x.dtype), epsilon
        )
    normalised: Tensor = _Normalised.apply(x, gain, epsilon)[0]  # type: ignore[no-untyped-call]
    return normalised


class _Normalised(torch.autograd.Function):
    """Also returns what x is multiplied with, of shape (..., 1), in float32 or above, for its own
    backward pass.
    """

    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor, gain: Tensor | None, epsilon: float) -> tuple[Tensor, Tensor]:
        scale = _scale(x, epsilon)
        y = x * scale.to(x.dtype)
        return (y if gain is None else y * gain.to(x.dtype)), scale

    @staticmethod
    def setup_context(
        ctx: Any, inputs: tuple[Tensor, Tensor | None, float], output: tuple[Tensor, Tensor]
    ) -> None:
        x, gain, ctx.epsilon = inputs
        ctx.mark_non_differentiable(output[1])
        ctx.save_for_backward(x, gain, output[1])
        ctx.save_for_forward(x, gain, output[1])

    @staticmethod
    def backward(ctx: Any, error: Tensor, _: Tensor | None) -> tuple[Tensor, Tensor | None, None]:
        x, gain, scale = ctx.saved_tensors
        inward = error if gain is None else error * gain.to(error.dtype)
        if torch.is_grad_enabled():
            # in steps that have derivatives themselves, should the gradient's own gradient be asked
            # for
            scale = _scale(x, ctx.epsilon)
            straight = x.to(scale.dtype) * scale
            along = (inward * straight).mean(-1, keepdim=True)
            of_x = ((inward - straight * along) * scale).to(x.dtype)
            of_gain = (
                None if gain is None else (error * straight).flatten(0, -2).sum(0).to(gain.dtype)
            )
            return of_x, of_gain, None
        # layer norm's, told that the mean is 0: it takes the mean off the gradient, which has to be
        # put back
        weight = (
            x.new_ones(x.shape[-1], dtype=scale.dtype) if gain is None else gain.to(scale.dtype)
        )
        of_x, of_gain, _ = torch.ops.aten.native_layer_norm_backward(
            error,
            x,
            x.shape[-1:],
            torch.zeros_like(scale),
            scale,
            weight,
            None,
            [True, gain is not None, False],
        )
        of_x += (inward.mean(-1, keepdim=True, dtype=scale.dtype) * scale).to(x.dtype)
        return of_x, None if gain is None else of_gain.to(gain.dtype), None

    @staticmethod
    def jvp(ctx: Any, of_x: Tensor | None, of_gain: Tensor | None, _: None) -> tuple[Tensor, None]:
        x, gain, scale = ctx.saved_tensors
        straight = x * scale
        y = torch.zeros_like(x)
        if of_x is not None:
            y = (of_x - straight * (straight * of_x).mean(-1, keepdim=True)) * scale
            y = y if gain is None else y * gain
        if of_gain is not None:
            y = y + straight * of_gain
        return y.to(x.dtype), None


def _scale(x: Tensor, epsilon: float) -> Tensor:
    precise = torch.promote_types(x.dtype, torch.float32)
    return (x.square().mean(-1, keepdim=True, dtype=precise) + epsilon).rsqrt()
