"""The full rate, then 1 - sqrt down to zero in a cool-down (Haegele et al. 2024), after a linear
warm-up.
"""

from math import sqrt

from pydantic import Field

from lmlab.training.schedules.base import Schedule, Warmup


class Options(Warmup):
    """Options of the schedule."""

    cooldown: float = Field(ge=0, le=1)


class WarmupStableDecay(Schedule):
    """As good as a cosine, and the long middle part serves runs of any length: each needs only a
    cool-down of its own.

    `cooldown` is a share of the whole run; no step of the warm-up is part of it.
    """

    def __init__(self, options: Options, steps: int) -> None:
        self.options = options
        self.length = min(round(options.cooldown * steps), max(0, steps - options.warmup))
        self.start = steps - self.length

    def factor(self, step: int) -> float:
        progress = max(0, step - self.start) / max(1, self.length)
        return self.options.reached(step) * (1 - sqrt(progress))
