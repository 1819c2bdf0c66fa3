"""What a schedule is: the learning rate at each step as a share of its peak."""

from abc import ABC, abstractmethod

from pydantic import Field

from lmlab.core.params import Params


class Warmup(Params):
    """What every schedule's options begin with: a linear warm-up of so many steps."""

    warmup: int = Field(ge=0)

    def warmup_factor(self, step: int) -> float:
        """min(1, (step + 1) / (warmup + 1)) at a step counted from 0."""
        return min(1.0, (step + 1) / (self.warmup + 1))


class Schedule(ABC):
    """Final classes take `(options, steps)`; their options derive from `Warmup`.

    The factor is (step + 1) / (warmup + 1) at the steps 0 .. warmup, so it is exactly 1 at the step
    `warmup`; from there on it never rises again. It is above 0 at every step, so that no step is
    for nothing. All this holds for any run of 1 step or more, also for one shorter than its
    warm-up.
    """

    @abstractmethod
    def factor(self, step: int) -> float:
        """What the peak learning rate is multiplied by at step 0 .. steps - 1: above 0, at most
        1.
        """
