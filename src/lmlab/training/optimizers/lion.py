"""Lion (Chen et al. 2023): every weight moves by the same amount, in the direction its momentum and
gradient agree on.
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
    beta2: float = Field(ge=0, lt=1)


class Lion(Optimizer):
    """Only the sign of the step is used, so its size is the learning rate: three to ten times less
    than AdamW's suits it.
    """

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
            parameter.sub_(momentum.lerp(gradient, 1 - options.beta1).sign_(), alpha=group["lr"])
            momentum.lerp_(gradient, 1 - options.beta2)
