"""A straight line down to a final share of the peak, after a linear warm-up.

Hard to beat by other schedules (Defazio et al. 2023).
"""

from pydantic import Field

from lmlab.training.schedules.base import Schedule, Warmup


class Options(Warmup):
    """Options of the schedule."""

    final: float = Field(ge=0, le=1)


class Linear(Schedule):
    """1 - (1 - final) * progress, with progress from 0 to 1 after warm-up."""

    def __init__(self, options: Options, steps: int) -> None:
        self.options, self.steps = options, steps

    def factor(self, step: int) -> float:
        options = self.options
        progress = max(0.0, (step - options.warmup) / max(1, self.steps - options.warmup))
        return options.warmup_factor(step) * (1 - (1 - options.final) * progress)
