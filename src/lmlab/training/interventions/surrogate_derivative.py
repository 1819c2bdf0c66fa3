"""Surrogate derivatives (Bengio et al. 2013; Neftci et al. 2019): activations keep their values and
get another slope.

The backward pass sees a function that is easier to pass through: for one that is flat or steps,
such as a spike, there is no other way.
"""

from collections.abc import Callable
from typing import Any, Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from lmlab.core.errors import UserError
from lmlab.core.params import Params
from lmlab.model.models.base import LanguageModel
from lmlab.training.interventions.base import Intervention
from lmlab.training.learning_rules.base import LearningRule, Pieces

ACTIVATIONS: set[Callable[..., Any]] = {
    nn.functional.relu,
    nn.functional.gelu,
    nn.functional.silu,
    torch.relu,
    torch.tanh,
    torch.sigmoid,
    Tensor.relu,
    Tensor.tanh,
    Tensor.sigmoid,
}
SURROGATES: dict[str, Callable[[Tensor], Tensor]] = {
    "identity": lambda x: x,  # straight through
    "box": lambda x: x.clamp(-1, 1),
    "fast_sigmoid": lambda x: x / (1 + x.abs()),  # (Zenke & Ganguli 2018): slope 1 / (1 + |x|)²
}


class Options(Params):
    """Options of the intervention."""

    surrogate: Literal["identity", "box", "fast_sigmoid"]
    strength: float = Field(ge=0, le=1)


class SurrogateDerivative(Intervention):
    """Slope (1 - strength) f'(x) + strength s'(x) for every relu, gelu, silu, tanh and sigmoid; the
    values stay f(x).

    s is `identity` (straight-through: slope 1), `box` (1 between -1 and 1) or `fast_sigmoid`. Gates
    are such functions too.
    """

    on_the_way = True
    neutral = {"strength": 0.0}

    def __init__(self, options: Options, model: LanguageModel, rule: LearningRule) -> None:
        super().__init__(rule)
        self.surrogate, self.strength = SURROGATES[options.surrogate], options.strength
        if not self.strength:
            return
        self.needs_backward()
        if not self._found(model):
            raise UserError(
                f"params.yaml: train.{self.key}: surrogate_derivative finds no activation"
                " function in this model; take it"
                " away, or choose a model that has one"
            )

    def accumulate_gradients(self, model: LanguageModel, pieces: Pieces) -> Tensor:
        if not self.strength:
            return self.rule.accumulate_gradients(model, pieces)
        with _Sloped(self.surrogate, self.strength):
            return self.rule.accumulate_gradients(model, pieces)

    def _found(self, model: LanguageModel) -> int:
        """How many activation functions a forward pass uses."""
        device = next(model.parameters()).device
        was_training = model.training
        with torch.no_grad(), _Sloped(self.surrogate, self.strength) as sloped:
            model.eval()(torch.zeros(1, 2, dtype=torch.long, device=device))
        model.train(was_training)
        return sloped.count


class _Sloped(TorchFunctionMode):
    def __init__(self, surrogate: Callable[[Tensor], Tensor], strength: float) -> None:
        super().__init__()
        self.surrogate, self.strength, self.count = surrogate, strength, 0

    def __torch_function__(
        self,
        function: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        y = function(*args, **(kwargs or {}))
        if function not in ACTIVATIONS:
            return y
        self.count += 1
        with torch._C.DisableTorchFunction():
            other = self.surrogate(args[0])
            # each difference is zero, so that y keeps its value, and has the slope that is wanted
            return y + self.strength * ((other - other.detach()) - (y - y.detach()))
