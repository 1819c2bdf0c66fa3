"""Schedule-Free AdamW (Defazio et al. 2024): an average of the weights takes the place of a falling
learning rate.
"""

from collections.abc import Iterator
from typing import Any

import torch
from pydantic import Field
from torch import Tensor, nn

from lmlab.training.optimizers.base import (
    ENTRYWISE,
    Groups,
    OptimizerOptions,
    add_caution,
    add_decay,
    epsilon_of,
    held,
    param_groups,
)


class Options(OptimizerOptions):
    """Options of the optimizer."""

    interpolation: float = Field(ge=0, lt=1)
    beta2: float = Field(ge=0, lt=1)
    epsilon: float = Field(gt=0)


class ScheduleFree(torch.optim.AdamW):
    """Three sequences of weights, best with the schedule `constant` after a warm-up.

    AdamW without momentum moves the `base`. The `average` of all bases so far, each weighted by its
    squared learning rate (so that a warm-up counts little), is what is evaluated and kept. The
    gradient is taken in between, at (1 - interpolation) * base + interpolation * average: these are
    the parameters during training, and weight decay pulls the base by as much as it would pull
    them.
    """

    width_powers = ENTRYWISE

    def __init__(self, options: Options, groups: Groups) -> None:
        super().__init__(
            param_groups(groups, options),
            betas=(0.0, options.beta2),
            eps=options.epsilon,
            weight_decay=0.0,
            fused=True,
        )
        for group in self.param_groups:
            group["eps"] = epsilon_of(group, options.epsilon)
        self.interpolation = options.interpolation
        add_decay(self, options)
        self.register_step_pre_hook(self._go_to_base)
        add_caution(self, options)
        self.register_step_post_hook(self._average)

    def averages(self) -> Iterator[tuple[nn.Parameter, Tensor]]:
        """The parameters that have moved, each with its average."""
        for group in self.param_groups:
            for parameter in group["params"]:
                if state := self.state.get(parameter):
                    yield parameter, state["average"]

    @torch.no_grad()
    def _go_to_base(self, *_: Any) -> None:
        for parameter in self._held():
            if state := self.state.get(parameter):
                between = state["base"].lerp(state["average"], self.interpolation)
                # what has moved the parameter since then (weight decay) moves the base; if nothing
                # has, this adds 0
                parameter.copy_(state["base"] + (parameter - between))

    @torch.no_grad()
    def _average(self, *_: Any) -> None:
        for group in self.param_groups:
            weight = group["lr"] ** 2
            for parameter, _gradient in held(group):
                state = self.state[parameter]
                if "base" not in state:  # the first base has all the weight
                    state.update(base=parameter.clone(), average=parameter.clone(), weight=0.0)
                state["weight"] += weight
                state["base"].copy_(parameter)
                state["average"].lerp_(parameter, weight / state["weight"] if weight else 0.0)
                parameter.lerp_(state["average"], self.interpolation)

    def _held(self) -> Iterator[nn.Parameter]:
        return (parameter for group in self.param_groups for parameter, _ in held(group))
