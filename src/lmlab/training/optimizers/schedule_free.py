"""Schedule-Free AdamW (Defazio et al. 2024): averaging weights replaces a falling learning rate."""

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
    param_groups,
    with_gradient,
)


class Options(OptimizerOptions):
    """Options of the optimizer."""

    interpolation: float = Field(ge=0, lt=1)
    """β₁ of the paper: how far from the base to the average gradients are taken."""
    beta2: float = Field(ge=0, lt=1)
    epsilon: float = Field(gt=0)


class ScheduleFree(torch.optim.AdamW):
    """Three sequences of weights; best with the schedule `constant` after a warm-up.

    The base z moves as by AdamW without momentum. The average x of all bases so far, each weighted
    by its squared learning rate (so that a warm-up counts little), is evaluated and saved. The
    parameters during training, where gradients are taken, lie between the two:

        y = (1 - interpolation) * z + interpolation * x

    Weight decay takes off the base as much as it would off y.
    """

    width_powers = ENTRYWISE
    squares_in_state = ("exp_avg_sq",)
    weights_in_state = ("base", "average")

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
                state = self.state.get(parameter)
                if state:
                    yield parameter, state["average"]

    @torch.no_grad()
    def _go_to_base(self, *_: Any) -> None:
        for group in self.param_groups:
            for parameter, _gradient in with_gradient(group):
                state = self.state.get(parameter)
                if not state:
                    continue
                between = state["base"].lerp(state["average"], self.interpolation)
                # weight decay has moved the parameter since then, and moves the base by as much; if
                # nothing has, this adds 0
                parameter.copy_(state["base"] + (parameter - between))

    @torch.no_grad()
    def _average(self, *_: Any) -> None:
        for group in self.param_groups:
            weight = group["lr"] ** 2
            for parameter, _gradient in with_gradient(group):
                state = self.state[parameter]
                if "base" not in state:  # the first base has all the weight
                    state.update(base=parameter.clone(), average=parameter.clone(), weight=0.0)
                state["weight"] += weight
                share = weight / state["weight"] if weight else 0.0
                state["base"].copy_(parameter)
                state["average"].lerp_(parameter, share)
                parameter.lerp_(state["average"], self.interpolation)
