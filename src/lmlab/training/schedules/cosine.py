"""Half a cosine down to a final share of the peak (Loshchilov & Hutter 2017), after a warm-up."""

from math import cos, pi

from pydantic import Field

from lmlab.training.schedules.base import Schedule, Warmup


class Options(Warmup):
    """Options of the schedule."""

    final: float = Field(ge=0, le=1)


class Cosine(Schedule):
    """final + (1 - final) (1 + cos(pi progress)) / 2, with progress from 0 to 1 after warm-up."""

    def __init__(self, options: Options, steps: int) -> None:
        self.options, self.steps = options, steps

    def factor(self, step: int) -> float:
        options = self.options
        progress = max(0.0, (step - options.warmup) / max(1, self.steps - options.warmup))
        cosine = 0.5 * (1 + cos(pi * progress))
        return options.warmup_factor(step) * (options.final + (1 - options.final) * cosine)
