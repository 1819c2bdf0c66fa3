"""Division by the root mean square (Zhang & Sennrich 2019), with a backward pass of its own.

torch has no fused one for CPUs: differentiating the operations one by one takes three to eight
times as long as layer norm's.
"""

from typing import Any

import torch
from torch import Tensor, nn

EPSILON = 1e-5
"""Added to the mean square to avoid a division by zero, where no option says how much."""


def rms_norm(x: Tensor, gain: Tensor | None = None, epsilon: float = EPSILON) -> Tensor:
    """X / sqrt(mean(x²) + epsilon) over the last dimension, times the gain if there is one.

    Returns a contiguous tensor of the shape and dtype of x, as torch's own does.
    """
    # so that sums are taken in the same order whether or not there is a gradient
    x = x.contiguous()
    # torch's compiler can neither handle a custom derivative nor gain from it
    if x.device.type != "cpu" or not torch.is_grad_enabled() or torch.compiler.is_compiling():
        torchs_gain = None if gain is None else gain.to(x.dtype)
        return nn.functional.rms_norm(x, x.shape[-1:], torchs_gain, epsilon)
    normalised: Tensor = _RMSNorm.apply(x, gain, epsilon)[0]  # type: ignore[no-untyped-call]
    return normalised


class _RMSNorm(torch.autograd.Function):
    """(y, scale): the norm, and scale = 1 / sqrt(mean(x²) + epsilon) for its own backward pass.

    The scale has shape (..., 1) and is in float32 or above. With n = x scale and e the gradient of
    y times the gain, the gradient of x is (e - n mean(e n)) scale.
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
    def backward(ctx: Any, grad_y: Tensor, _: Tensor | None) -> tuple[Tensor, Tensor | None, None]:
        x, gain, scale = ctx.saved_tensors
        grad_normalised = grad_y if gain is None else grad_y * gain.to(grad_y.dtype)
        if torch.is_grad_enabled():
            # a second derivative may be asked for: use operations that have derivatives
            scale = _scale(x, ctx.epsilon)
            normalised = x.to(scale.dtype) * scale
            along = (grad_normalised * normalised).mean(-1, keepdim=True)
            grad_x = ((grad_normalised - normalised * along) * scale).to(x.dtype)
            if gain is None:
                return grad_x, None, None
            grad_gain = (grad_y * normalised).flatten(0, -2).sum(0).to(gain.dtype)
            return grad_x, grad_gain, None
        if gain is None:
            weight = x.new_ones(x.shape[-1], dtype=scale.dtype)
        else:
            weight = gain.to(scale.dtype)
        # layer norm's backward pass with a mean of 0; it subtracts the mean of the gradient, which
        # has to be added back
        grad_x, grad_gain, _ = torch.ops.aten.native_layer_norm_backward(
            grad_y,
            x,
            x.shape[-1:],
            torch.zeros_like(scale),
            scale,
            weight,
            None,
            [True, gain is not None, False],
        )
        mean = grad_normalised.mean(-1, keepdim=True, dtype=scale.dtype)
        grad_x += (mean * scale).to(x.dtype)
        return grad_x, None if gain is None else grad_gain.to(gain.dtype), None

    @staticmethod
    def jvp(
        ctx: Any, tangent_x: Tensor | None, tangent_gain: Tensor | None, _: None
    ) -> tuple[Tensor, None]:
        x, gain, scale = ctx.saved_tensors
        normalised = x * scale
        tangent_y = torch.zeros_like(x)
        if tangent_x is not None:
            along = (normalised * tangent_x).mean(-1, keepdim=True)
            tangent_y = (tangent_x - normalised * along) * scale
            tangent_y = tangent_y if gain is None else tangent_y * gain
        if tangent_gain is not None:
            tangent_y = tangent_y + normalised * tangent_gain
        return tangent_y.to(x.dtype), None


def _scale(x: Tensor, epsilon: float) -> Tensor:
    dtype = torch.promote_types(x.dtype, torch.float32)
    return (x.square().mean(-1, keepdim=True, dtype=dtype) + epsilon).rsqrt()
