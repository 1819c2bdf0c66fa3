"""What more context is worth: loss early in the window minus loss late in it (Olsson et al. 2022).

gain = mean loss at positions early .. early + n - 1, minus mean loss at late .. late + n - 1.
"""

from typing import ClassVar

from pydantic import Field, model_validator

from lmlab.core.params import Params
from lmlab.evaluation.about import STRIDE
from lmlab.evaluation.measures.base import DoesNotApply, Measure, Numbers, Trained
from lmlab.model.scoring import Score


class Options(Params):
    """Options of the measure."""

    early: int = Field(ge=1)
    late: int = Field(ge=1)
    positions: int = Field(ge=1)

    @model_validator(mode="after")
    def _late_is_late(self) -> "Options":
        if self.late <= self.early:
            raise ValueError(f"late ({self.late}) should come after early ({self.early})")
        return self


class ContextGain(Measure):
    """On validation, mean losses over `positions` positions of the window from `early` and `late`.

    Positions count from 1. `nats` is early minus late: positive where context helps. The positions
    are fixed, so runs with different windows compare. A larger gain is not better by itself: a
    worse early loss raises it.
    """

    decided_by: ClassVar = {"*": (STRIDE,)}

    def __init__(self, options: Options) -> None:
        self.options = options

    def measure(self, trained: Trained) -> Numbers:
        options, scored = self.options, trained.scores["validation"]
        last = max(options.early, options.late) + options.positions - 1
        window = len(scored.nats_by_position)
        if window < last:
            raise DoesNotApply(
                f"it looks as far as position {last}, and the window ends at {window}"
            )
        early = _mean_loss(scored, options.early, options.positions)
        late = _mean_loss(scored, options.late, options.positions)
        return {"early_nats": early, "late_nats": late, "nats": early - late}


def _mean_loss(scored: Score, first: int, positions: int) -> float:
    """Nats per token over some positions of the window, from the position `first`."""
    band = slice(first - 1, first - 1 + positions)
    tokens = scored.tokens_by_position[band].sum()
    if not tokens:
        raise DoesNotApply(f"no text of validation stands at position {first} of a window")
    return float(scored.nats_by_position[band].sum() / tokens)
