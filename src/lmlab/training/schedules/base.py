"""What a schedule is: the learning rate at each step as a share of its full value."""

from abc import ABC, abstractmethod

from pydantic import Field

from lmlab.core.params import Params


class Warmup(Params):
    """What every schedule's options begin with."""

    warmup: int = Field(ge=0)

    def reached(self, step: int) -> float:
        """How much of the full rate the warm-up allows at a step counted from 0."""
        return min(1.0, (step + 1) / (self.warmup + 1))


class Schedule(ABC):
    """Final classes take `(options, steps)`."""

    @abstractmethod
    def factor(self, step: int) -> float:
        """The share of the full learning rate, 0 to 1, at step 0 .. steps - 1."""
