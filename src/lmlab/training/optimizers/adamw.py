"""AdamW (Loshchilov & Hutter 2019): Adam with weight decay that bypasses the gradient.

With m and v the running means of gradient and squared gradient, corrected for their start at zero:
p -= lr * m / (sqrt(v) + epsilon). The update is torch's own.
"""

import torch
from pydantic import Field

from lmlab.training.optimizers.base import (
    ENTRYWISE,
    Groups,
    OptimizerOptions,
    add_caution,
    add_decay,
    epsilon_of,
    param_groups,
)


class Options(OptimizerOptions):
    """Options of the optimizer."""

    beta1: float = Field(ge=0, lt=1)
    """Decay of the first moment, the mean of gradients."""
    beta2: float = Field(ge=0, lt=1)
    """Decay of the second moment, the mean of squared gradients."""
    epsilon: float = Field(gt=0)


class AdamW(torch.optim.AdamW):
    """The standard choice, which others have to beat."""

    width_powers = ENTRYWISE
    squares_in_state = ("exp_avg_sq",)

    def __init__(self, options: Options, groups: Groups) -> None:
        super().__init__(
            param_groups(groups, options),
            betas=(options.beta1, options.beta2),
            eps=options.epsilon,
            weight_decay=0.0,
            fused=True,
        )
        for group in self.param_groups:
            group["eps"] = epsilon_of(group, options.epsilon)
        add_decay(self, options)
        add_caution(self, options)
