"""The linear maps of a model's forward pass: their weights, and a mode that replaces each call.

Rules that change what a weight matrix sends back, or that estimate its gradient from its input and
noise at its output, need every call of a linear map. `LinearMapMode` is the one place that sees
them.
"""

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.grad import conv1d_input, conv1d_weight
from torch.overrides import TorchFunctionMode

from lmlab.model.models.base import LanguageModel
from lmlab.training.learning_rules.base import accumulate_grad

ARGUMENTS: dict[Any, tuple[str, ...]] = {
    nn.functional.linear: ("input", "weight", "bias"),
    nn.functional.conv1d: ("input", "weight", "bias", "stride", "padding", "dilation", "groups"),
    nn.functional.embedding: (
        "input",
        "weight",
        "padding_idx",
        "max_norm",
        "norm_type",
        "scale_grad_by_freq",
        "sparse",
    ),
}
"""torch's functions that are linear in a weight, and the names of their positional arguments.

An embedding is one: its input, seen as one-hot vectors, is multiplied by its weight.
"""


def linear_weights(model: LanguageModel) -> dict[str, nn.Parameter]:
    """The weight of every linear layer and convolution by dotted name.

    A weight tied to an embedding stands under the embedding's name.
    """
    layers = [module for module in model.modules() if isinstance(module, nn.Linear | nn.Conv1d)]
    weight_ids = {id(layer.weight) for layer in layers}
    return {
        name: parameter
        for name, parameter in model.named_parameters()
        if id(parameter) in weight_ids
    }


@dataclass(frozen=True)
class LinearMapCall:
    """One call of `linear`, `conv1d` or `embedding` in a forward pass: everything but its input.

    The input is left out so that a call kept until the backward pass does not keep activations.
    """

    name: str
    """Dotted name of the weight."""
    function: Callable[..., Tensor]
    weight: Tensor
    settings: dict[str, Any]
    """The arguments beside input and weight: bias; a convolution's stride, padding and so on."""
    x_shape: torch.Size
    batch_shape: torch.Size
    """(B, T) of the batch that goes through the model."""
    repetition: int
    """How often this weight was used before in the same pass: the time step in a loop over time."""
    token_rows_N: Tensor | None  # noqa: N815
    """Where the input has a row for some of the tokens alone, as an expert's has: which of the B *
    T tokens each row stands for.
    """

    @property
    def is_lookup(self) -> bool:
        """Whether it is an embedding's look-up."""
        return self.function is nn.functional.embedding

    @property
    def is_convolution(self) -> bool:
        """Whether input and output are laid out (batch, channel, time)."""
        return self.function is nn.functional.conv1d

    @property
    def feature_dimension(self) -> int:
        """The dimension of the output that counts its units."""
        return 1 if self.is_convolution else -1

    def output(self, x: Tensor) -> Tensor:
        """y, computed exactly as the model would."""
        return self.function(x, self.weight, **self.settings)

    def input_gradient(self, grad_y: Tensor, weight: Tensor) -> Tensor:
        """dL/dx as backprop would compute it with this weight: grad_y W for a linear map."""
        weight = weight.detach().to(grad_y.dtype)
        if not self.is_convolution:
            return grad_y @ weight
        return conv1d_input(self.x_shape, weight, grad_y, **self._convolution_settings())  # type: ignore[no-untyped-call]

    def accumulate_grads(self, x: Tensor, grad_y: Tensor) -> None:
        """Add the gradients of weight and bias, grad_y^T x and the sum of grad_y for a linear map.

        No backward pass: both are products of what is at hand in the forward pass.
        """
        weight: nn.Parameter = self.weight  # type: ignore[assignment]
        grad_y = grad_y.to(weight.dtype)
        rows_NE = grad_y.flatten(0, -2)
        if self.is_lookup:
            accumulate_grad(weight, torch.zeros_like(weight).index_add_(0, x.flatten(), rows_NE))
        elif self.is_convolution:
            x = x.to(weight.dtype)
            settings = self._convolution_settings()
            accumulate_grad(weight, conv1d_weight(x, weight.shape, grad_y, **settings))  # type: ignore[no-untyped-call]
            rows_NE = grad_y.transpose(1, 2).flatten(0, 1)
        else:
            accumulate_grad(weight, rows_NE.T @ x.to(weight.dtype).flatten(0, -2))
        bias = self.settings.get("bias")
        if bias is not None:
            accumulate_grad(bias, rows_NE.sum(dim=0))

    def _convolution_settings(self) -> dict[str, Any]:
        return {name: value for name, value in self.settings.items() if name != "bias"}


class LinearMapMode(TorchFunctionMode):
    """Inside, every call of a linear map with one of `weights` returns `replace(call, x)` instead.

    Calls are those of torch's `linear`, `conv1d` and `embedding`; a product that a layer writes out
    with `@` is not seen. Inside `replace` the mode is off.
    """

    def __init__(
        self,
        weights: Mapping[str, Tensor],
        tokens_BT: Tensor,
        replace: Callable[[LinearMapCall, Tensor], Tensor],
    ) -> None:
        super().__init__()
        self.names = {id(weight): name for name, weight in weights.items()}
        self.replace = replace
        self.batch_shape = tokens_BT.shape
        self.repetitions: Counter[str] = Counter()
        self.selected_N: Tensor | None = None
        """Which tokens the rows selected last stand for, while maps are applied to those rows."""

    def __torch_function__(
        self,
        function: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        if function is Tensor.__getitem__:
            self._note_selection(*args)
        if function not in ARGUMENTS:
            return function(*args, **kwargs)
        settings = {**dict(zip(ARGUMENTS[function], args, strict=False)), **kwargs}
        x: Tensor = settings.pop("input")
        weight: Tensor = settings.pop("weight")
        token_rows_N = self._token_rows(function, x)
        name = self.names.get(id(weight))
        if name is None:
            return function(*args, **kwargs)
        call = LinearMapCall(
            name=name,
            function=function,
            weight=weight,
            settings=settings,
            x_shape=x.shape,
            batch_shape=self.batch_shape,
            repetition=self.repetitions[name],
            token_rows_N=token_rows_N,
        )
        self.repetitions[name] += 1
        return self.replace(call, x)

    def _note_selection(self, tensor: Tensor, index: Any) -> None:
        """Note the rows that a mixture of experts selects from x_ND, where N counts all tokens."""
        has_all_tokens = tensor.ndim == 2 and len(tensor) == self.batch_shape.numel()
        is_index = isinstance(index, Tensor) and index.ndim == 1 and not index.is_floating_point()
        if has_all_tokens and is_index:
            self.selected_N = index

    def _token_rows(self, function: Callable[..., Any], x: Tensor) -> Tensor | None:
        """The selected tokens if x has a row for each of them; any other map ends the selection."""
        row_dimensions = 1 if function is nn.functional.embedding else 2
        has_rows = x.ndim == row_dimensions and function is not nn.functional.conv1d
        if self.selected_N is None or not has_rows or len(x) != len(self.selected_N):
            self.selected_N = None
        return self.selected_N
