"""Surrogate derivatives (Bengio et al. 2013; Neftci et al. 2019): activations with another slope.

    forward: f(x)        backward slope: (1 - strength) f'(x) + strength s'(x)

f is every relu, gelu, silu, tanh and sigmoid in the model; gates are such functions too. The
surrogate s is `identity` (straight-through: slope 1), `box` (slope 1 between -1 and 1, otherwise 0)
or `fast_sigmoid` (slope 1 / (1 + |x|)^2). For functions that are flat or steps, such as a spike, a
surrogate is the only way to pass a gradient. Strength 0 turns it off. Cost: a few operations on
each activation, and its memory.
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
from lmlab.training.learning_rules.base import LearningRule, MicroBatches

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


def identity(x: Tensor) -> Tensor:
    """Return x: slope 1, the straight-through estimator (Bengio et al. 2013)."""
    return x


def box(x: Tensor) -> Tensor:
    """Limit x to [-1, 1]: slope 1 inside, 0 outside."""
    return x.clamp(-1, 1)


def fast_sigmoid(x: Tensor) -> Tensor:
    """Return x / (1 + |x|): slope 1 / (1 + |x|)^2 (Zenke & Ganguli 2018)."""
    return x / (1 + x.abs())


SURROGATES: dict[str, Callable[[Tensor], Tensor]] = {
    "identity": identity,
    "box": box,
    "fast_sigmoid": fast_sigmoid,
}


class Options(Params):
    """Options of the intervention."""

    surrogate: Literal["identity", "box", "fast_sigmoid"]
    strength: float = Field(ge=0, le=1)


class SurrogateDerivative(Intervention):
    """It has no state."""

    acts_in_backward = True
    neutral = {"strength": 0.0}

    def __init__(self, options: Options, model: LanguageModel, rule: LearningRule) -> None:
        super().__init__(rule)
        self.surrogate = SURROGATES[options.surrogate]
        self.strength = options.strength
        if not self.strength:
            return
        self.require_backward()
        if not self._activation_count(model):
            raise UserError(
                f"params.yaml: train.{self.key}: surrogate_derivative finds no activation function"
                " in this model; remove it, or choose a model that has one"
            )

    def accumulate_gradients(self, model: LanguageModel, micro_batches: MicroBatches) -> Tensor:
        if not self.strength:
            return self.rule.accumulate_gradients(model, micro_batches)
        with SurrogateMode(self.surrogate, self.strength):
            return self.rule.accumulate_gradients(model, micro_batches)

    def _activation_count(self, model: LanguageModel) -> int:
        """How many calls of activation functions a forward pass makes."""
        device = next(model.parameters()).device
        tokens_BT = torch.zeros(1, 2, dtype=torch.long, device=device)
        was_training = model.training
        model.eval()
        with torch.no_grad(), SurrogateMode(self.surrogate, self.strength) as mode:
            model(tokens_BT)
        model.train(was_training)
        return mode.calls


class SurrogateMode(TorchFunctionMode):
    """Inside, activation functions keep their values and get the mixed slope; counts calls."""

    def __init__(self, surrogate: Callable[[Tensor], Tensor], strength: float) -> None:
        super().__init__()
        self.surrogate = surrogate
        self.strength = strength
        self.calls = 0

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
        self.calls += 1
        with torch._C.DisableTorchFunction():
            s = self.surrogate(args[0])
            # both differences are zero, so y keeps its value; only their slopes count
            return y + self.strength * ((s - s.detach()) - (y - y.detach()))
