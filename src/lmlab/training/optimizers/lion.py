"""Lion (Chen et al. 2023): p -= lr * sign(beta1 * momentum + (1 - beta1) * gradient).

Afterwards the momentum decays with beta2 instead: every weight moves by the same amount.
"""

from typing import Any

import torch
from pydantic import Field
from torch import Tensor, nn

from lmlab.training.optimizers.base import (
    ENTRYWISE,
    Groups,
    Optimizer,
    OptimizerOptions,
    param_groups,
)


class Options(OptimizerOptions):
    """Options of the optimizer."""

    beta1: float = Field(ge=0, lt=1)
    """The momentum's share in the direction of a step."""
    beta2: float = Field(ge=0, lt=1)
    """Decay of the momentum from step to step."""


class Lion(Optimizer):
    """Steps have the size of the learning rate, so it should be 3 to 10 times less than AdamW's."""

    width_powers = ENTRYWISE

    def __init__(self, options: Options, groups: Groups) -> None:
        super().__init__(options, param_groups(groups, options))
        self.options = options

    def move(self, group: dict[str, Any], parameters: list[tuple[nn.Parameter, Tensor]]) -> None:
        options = self.options
        for parameter, gradient in parameters:
            state = self.state[parameter]
            if not state:
                state["momentum"] = torch.zeros_like(parameter)
            momentum = state["momentum"]
            direction = momentum.lerp(gradient, 1 - options.beta1).sign_()
            parameter.sub_(direction, alpha=group["lr"])
            momentum.lerp_(gradient, 1 - options.beta2)
