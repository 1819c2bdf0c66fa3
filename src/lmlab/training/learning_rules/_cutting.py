"""What flows backward at a cut: learning rules that replace it put it in here.

`Rerouted` stands behind every linear map and decides what goes from its output's gradient to its
input. `Pieces` cuts the model below every block and below the head, and leaves to a rule what
arrives at each output.
"""

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.grad import conv1d_input
from torch.overrides import TorchFunctionMode

from lmlab.model.models.base import LanguageModel, next_token_loss


def linear_weights(model: LanguageModel) -> dict[str, nn.Parameter]:
    """The weight of every linear map and convolution by its dotted name; one tied to an embedding
    is called as that is.
    """
    modules = (nn.Linear, nn.Conv1d)
    weights = {id(module.weight) for module in model.modules() if isinstance(module, modules)}
    return {
        name: parameter for name, parameter in model.named_parameters() if id(parameter) in weights
    }


def key(name: str) -> str:
    """A dotted name as one that a rule's own state may have."""
    return name.replace(".", "/")


def drawn_like(weight: Tensor, scale: float = 1.0, shape: Sequence[int] | None = None) -> Tensor:
    """Normal random numbers in root mean square `scale` times as large as the weight is now; in its
    shape or another.
    """
    drawn = weight.detach().new_empty(shape or weight.shape)
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

    Forward nothing changes, bit for bit. The weights and biases get the exact gradient for what
    arrives at the outputs. Linear maps are the calls of torch's `linear` and `conv1d` with a weight
    of `linear_weights`; any other product of an input and a parameter keeps its exact gradient, as
    do look-ups, norms, activations, gates and attention's products.
    """

    def __init__(self, model: LanguageModel, down: Down) -> None:
        super().__init__()
        self.names = {id(weight): name for name, weight in linear_weights(model).items()}
        self.down = down
        self.calls: list[Call] = []
        """Those made inside so far."""

    def __torch_function__(
        self,
        function: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        if function not in (nn.functional.linear, nn.functional.conv1d):
            return function(*args, **kwargs)
        is_linear = function is nn.functional.linear
        x, weight, bias, *convolution = (
            _linear(*args, **kwargs) if is_linear else _conv1d(*args, **kwargs)
        )
        name = self.names.get(id(weight))
        if name is None:
            return function(*args, **kwargs)
        y = function(x.detach(), weight, bias, *convolution)
        call = Call(name, weight, x.shape, y.shape, None if is_linear else tuple(convolution))
        self.calls.append(call)
        return _Junction.apply(x, y, lambda grad_y: self.down(call, grad_y))  # type: ignore[no-untyped-call]


def backprop_with(
    down: Down, model: LanguageModel, tokens_BT: Tensor, targets_BT: Tensor
) -> Tensor:
    """Add the gradients that backprop gives when linear maps send down what `down` says; returns
    the mean loss, detached.
    """
    with Rerouted(model, down):
        loss = next_token_loss(model(tokens_BT), targets_BT)
    torch.autograd.backward(loss)
    return loss.detach()


def _linear(input: Tensor, weight: Tensor, bias: Tensor | None = None) -> tuple[Any, ...]:
    return input, weight, bias


def _conv1d(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Any = 1,
    padding: Any = 0,
    dilation: Any = 1,
    groups: int = 1,
) -> tuple[Any, ...]:
    return input, weight, bias, stride, padding, dilation, groups


class _Junction(torch.autograd.Function):
    """y as it is; backward its gradient goes on to y, and what `down` makes of it to x, which y
    need not depend on.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, y: Tensor, down: Callable[[Tensor], Tensor]) -> Tensor:
        ctx.down = down
        return y.view_as(y)

    @staticmethod
    def backward(ctx: Any, grad_y: Tensor) -> tuple[Tensor | None, Tensor, None]:
        return ctx.down(grad_y) if ctx.needs_input_grad[0] else None, grad_y, None


def without_storage(model: LanguageModel) -> LanguageModel:
    """A copy that computes nothing but shapes, in evaluation mode, where no layer asks for the
    values of a tensor.

    Tied weights stay one.
    """
    shapes: dict[int, Any] = {
        id(parameter): nn.Parameter(parameter.detach().to("meta"), parameter.requires_grad)
        for parameter in model.parameters()
    }
    shapes |= {id(buffer): buffer.to("meta") for buffer in model.buffers()}
    return copy.deepcopy(model, shapes).eval()


def stream_widths(model: LanguageModel) -> list[int]:
    """How many numbers the embedding and then each block hand on for a token: one more than there
    are blocks.
    """
    if model.plain_stream:  # without a trial, for which torch would load its compiler (2 s)
        return [model.width] * (1 + len(model.blocks))
    trial = without_storage(model)
    with torch.no_grad():
        stream = [trial.embed(torch.zeros(1, 2, dtype=torch.long, device="meta"))]
        for block in trial.blocks:
            stream.append(block(stream[-1]))
    return [s_BTS.shape[-1] for s_BTS in stream]


class Pieces:
    """A forward pass of the model in pieces: the embedding, which is piece 0, the blocks from 1 on,
    and the head.

    Each reads a copy of what the one below put out, and no gradient gets from the copy to the
    original by itself.
    """

    def __init__(self, model: LanguageModel, tokens_BT: Tensor) -> None:
        self.outputs = [model.embed(tokens_BT)]
        self.copies = [self._copy()]
        """Of the outputs: the input of the piece above, where gradients of what is computed from it
        arrive.
        """
        for block in model.blocks:
            self.outputs.append(block(self.copies[-1]))
            self.copies.append(self._copy())
        self.logits_BTV = model.head(self.copies[-1])

    def _copy(self) -> Tensor:
        return self.outputs[-1].detach().requires_grad_()

    def arrived(self, number: int) -> Tensor | None:
        """Takes away the gradient that has arrived at the copy of a piece's output, if any has, and
        returns it.
        """
        gradient, self.copies[number].grad = self.copies[number].grad, None
        return gradient

    def teach(self, number: int, gradient: Tensor | None) -> Tensor | None:
        """Backprop within one piece from a gradient at its output; returns that at its input, None
        below the embedding.
        """
        output = self.outputs[number]
        if gradient is not None and output.requires_grad:
            torch.autograd.backward(output, gradient.to(output.dtype), retain_graph=True)
        return self.arrived(number - 1) if number else None


def teach_by_local_losses(pieces: Pieces, losses: list[Tensor], span: int) -> None:
    """Each loss, one for every block and computed from the copy of its output, teaches that block
    and span - 1 below it.

    The embedding belongs to the first block. What a loss is computed with (a head, say) is taught
    too.
    """
    from_above: list[Tensor | None] = []
    for number in range(len(losses), 0, -1):
        torch.autograd.backward(losses[number - 1])
        arriving = [pieces.arrived(number), *from_above][:span]
        from_above = [pieces.teach(number, gradient) for gradient in arriving]
    for gradient in from_above:
        pieces.teach(0, gradient)


class LocalHeads(nn.Module):
    """A head for every block but the last, as models have one above that: a norm without weights,
    then a linear map.
    """

    def __init__(self, model: LanguageModel) -> None:
        super().__init__()
        widths = stream_widths(model)[1:-1]
        self.weights = nn.ParameterList(
            torch.empty(model.vocabulary_size, width).normal_(std=0.02) for width in widths
        )

    def loss(self, number: int, s_BTS: Tensor, targets_BT: Tensor) -> Tensor:
        """Mean cross-entropy in nats per token of the prediction from block `number`'s output,
        counted from 0.
        """
        normalised = nn.functional.rms_norm(s_BTS, s_BTS.shape[-1:])
        return next_token_loss(nn.functional.linear(normalised, self.weights[number]), targets_BT)
