"""A straight line down to a final share, after a linear warm-up (Defazio et al. 2023 find it hard
to beat).
"""

from pydantic import Field

from lmlab.training.schedules.base import Schedule, Warmup


class Options(Warmup):
    """Options of the schedule."""

    final: float = Field(ge=0, le=1)


class Linear(Schedule):
    """Warm-up, then from 1 to `final` at the end of the run."""

    def __init__(self, options: Options, steps: int) -> None:
        self.options, self.steps = options, steps

    def factor(self, step: int) -> float:
        options = self.options
        progress = max(0.0, (step - options.warmup) / max(1, self.steps - options.warmup))
        return options.reached(step) * (1 - (1 - options.final) * progress)
