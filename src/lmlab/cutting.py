"""What flows backward at a cut: learning rules that replace it put it in here.

`Rerouted` stands behind every linear map and decides what goes from its output's gradient to its input.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.grad import conv1d_input
from torch.overrides import TorchFunctionMode

from lmlab.models.base import LanguageModel


def linear_weights(model: LanguageModel) -> dict[str, nn.Parameter]:
    """The weight of every linear map and convolution by its dotted name; one tied to an embedding is called as that is."""
    modules = (nn.Linear, nn.Conv1d)
    weights = {id(module.weight) for module in model.modules() if isinstance(module, modules)}
    return {name: parameter for name, parameter in model.named_parameters() if id(parameter) in weights}


def key(name: str) -> str:
    """A dotted name as one that a rule's own state may have."""
    return name.replace(".", "/")


def drawn_like(weight: Tensor, scale: float = 1.0) -> Tensor:
    """Normal random numbers in a weight's shape, as large on root mean square as `scale` times the weight is now."""
    drawn = torch.empty_like(weight, requires_grad=False)
    if weight.is_meta:
        return drawn
    return drawn.normal_().mul_(scale * weight.detach().square().mean().sqrt())


@dataclass(frozen=True)
class Call:
    """One use of a linear map (or convolution) in the forward pass."""

    name: str
    """Of its weight, with dots."""
    weight: Tensor
    x_shape: torch.Size
    y_shape: torch.Size
    convolution: tuple[Any, ...] | None
    """Stride, padding, dilation and groups; None in a linear map."""

    def back(self, grad_y: Tensor, weight: Tensor) -> Tensor:
        """The gradient at the input as backprop would have it if the map had this weight."""
        weight = weight.detach().to(grad_y.dtype)
        if self.convolution is None:
            return grad_y @ weight
        return conv1d_input(self.x_shape, weight, grad_y, *self.convolution)  # type: ignore[no-untyped-call]


Down = Callable[[Call, Tensor], Tensor]
"""What a map sends down, in its input's shape, made from the gradient at its output."""


class Rerouted(TorchFunctionMode):
    """Inside, the linear maps of a model send down what `down` says instead of their gradient.

    Forward nothing changes, bit for bit. The weights and biases get the exact gradient for what arrives at the outputs.
    Linear maps are the calls of torch's `linear` and `conv1d` with a weight of `linear_weights`; any other product of an
    input and a parameter keeps its exact gradient, as do look-ups, norms, activations, gates and attention's products.
    """

    def __init__(self, model: LanguageModel, down: Down) -> None:
        super().__init__()
        self.names = {id(weight): name for name, weight in linear_weights(model).items()}
        self.down = down

    def __torch_function__(
        self, function: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if function not in (nn.functional.linear, nn.functional.conv1d):
            return function(*args, **kwargs)
        is_linear = function is nn.functional.linear
        x, weight, bias, *convolution = _linear(*args, **kwargs) if is_linear else _conv1d(*args, **kwargs)
        name = self.names.get(id(weight))
        if name is None:
            return function(*args, **kwargs)
        y = function(x.detach(), weight, bias, *convolution)
        call = Call(name, weight, x.shape, y.shape, None if is_linear else tuple(convolution))
        return _Junction.apply(x, y, lambda grad_y: self.down(call, grad_y))  # type: ignore[no-untyped-call]


def _linear(input: Tensor, weight: Tensor, bias: Tensor | None = None) -> tuple[Any, ...]:
    return input, weight, bias


def _conv1d(
    input: Tensor, weight: Tensor, bias: Tensor | None = None, stride: Any = 1, padding: Any = 0, dilation: Any = 1,
    groups: int = 1,
) -> tuple[Any, ...]:  # fmt: skip
    return input, weight, bias, stride, padding, dilation, groups


class _Junction(torch.autograd.Function):
    """y as it is; backward its gradient goes on to y, and what `down` makes of it to x, which y need not depend on."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, y: Tensor, down: Callable[[Tensor], Tensor]) -> Tensor:
        ctx.down, ctx.shape = down, x.shape
        return y.view_as(y)

    @staticmethod
    def backward(ctx: Any, grad_y: Tensor) -> tuple[Tensor | None, Tensor, None]:
        return ctx.down(grad_y) if ctx.needs_input_grad[0] else None, grad_y, None
