"""Warm-up, then the peak learning rate, then a cool-down to zero (Haegele et al. 2024)."""

from math import sqrt

from pydantic import Field

from lmlab.training.schedules.base import Schedule, Warmup


class Options(Warmup):
    """Options of the schedule."""

    cooldown: float = Field(ge=0, le=1)


class WarmupStableDecay(Schedule):
    """1 - sqrt(progress), with progress from 0 to 1 in the cool-down.

    As good as a cosine, and the long middle part serves runs of several lengths: each needs only a
    cool-down of its own. `cooldown` is a share of the whole run; no step of the warm-up belongs to
    it.
    """

    def __init__(self, options: Options, steps: int) -> None:
        self.options = options
        self.length = min(round(options.cooldown * steps), max(0, steps - options.warmup))
        self.start = steps - self.length

    def factor(self, step: int) -> float:
        progress = max(0, step - self.start) / max(1, self.length)
        return self.options.warmup_factor(step) * (1 - sqrt(progress))
