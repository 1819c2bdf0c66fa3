"""What more context is worth: the loss early in the window against the loss late in it (Olsson et
al. 2022).
"""

from typing import ClassVar

from pydantic import Field, model_validator

from lmlab.core.params import Params
from lmlab.evaluation.about import STRIDE
from lmlab.evaluation.measures.base import DoesNotApply, Measure, Numbers, Trained


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
    """On validation, each the mean over `positions` positions of the window from `early` or `late`
    on, 1 being the first.

    `nats` is early minus late: positive where context helps. The positions are fixed, so runs with
    other windows compare. A larger gain is not better by itself: whatever is lost early adds to it.
    """

    decided_by: ClassVar = {"*": (STRIDE,)}

    def __init__(self, options: Options) -> None:
        self.options = options

    def measure(self, trained: Trained) -> Numbers:
        options, scored = self.options, trained.scores["validation"]
        needed = max(options.early, options.late) + options.positions - 1
        if len(scored.nats_by_position) < needed:
            raise DoesNotApply(
                f"it looks as far as position {needed}, and the window ends at"
                f" {len(scored.nats_by_position)}"
            )
        means = []
        for first in (options.early, options.late):
            band = slice(first - 1, first - 1 + options.positions)
            if not scored.tokens_by_position[band].sum():
                raise DoesNotApply(f"no text of validation stands at position {first} of a window")
            means.append(
                float(scored.nats_by_position[band].sum() / scored.tokens_by_position[band].sum())
            )
        return {"early_nats": means[0], "late_nats": means[1], "nats": means[0] - means[1]}
