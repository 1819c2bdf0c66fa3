"""The peak learning rate throughout, after a linear warm-up."""

from lmlab.training.schedules.base import Schedule, Warmup


class Options(Warmup):
    """Options of the schedule."""


class Constant(Schedule):
    """Warm-up, then 1."""

    def __init__(self, options: Options, steps: int) -> None:
        self.options = options

    def factor(self, step: int) -> float:
        return self.options.warmup_factor(step)
