"""Gradient descent with momentum (Polyak 1964; Nesterov's form: Sutskever et al. 2013).

v = momentum * v + g, then p -= lr * v; in Nesterov's form p -= lr * (g + momentum * v). The update
is torch's own.
"""

import torch
from pydantic import Field, model_validator

from lmlab.training.optimizers.base import (
    Groups,
    OptimizerOptions,
    add_caution,
    add_decay,
    param_groups,
)
from lmlab.training.widths import width_powers


class Options(OptimizerOptions):
    """Options of the optimizer."""

    momentum: float = Field(ge=0, lt=1)
    nesterov: bool

    @model_validator(mode="after")
    def _nesterov_needs_momentum(self) -> "Options":
        if self.nesterov and not self.momentum:
            raise ValueError(
                "nesterov: true needs a momentum above 0; raise momentum or set nesterov: false"
            )
        return self


class SGD(torch.optim.SGD):
    """One learning rate for all weights, whatever the size of their gradients.

    Gradients go with the width as 1 / fan_out, and fan_in of them add up in each number of the
    output, so the learning rate goes as fan_out / fan_in. That holds for unclipped gradients only:
    `train.clip` divides them by a norm that grows with the width.
    """

    width_powers = width_powers(lambda kind, fans: fans.fan_out - fans.fan_in)

    def __init__(self, options: Options, groups: Groups) -> None:
        super().__init__(
            param_groups(groups, options),
            momentum=options.momentum,
            nesterov=options.nesterov,
            weight_decay=0.0,
            # torch's faster forms write into gradients, or fail where a parameter gets its first
            # gradient later than the others
            foreach=False,
        )
        add_decay(self, options)
        add_caution(self, options)
