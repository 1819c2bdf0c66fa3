"""How a run ended, as its records say it.

model.json, metrics.json and measures.json have the same keys for it: `status` is FINISHED or
DIVERGED; of a run that diverged, `diverged` has the step that could not be taken, counted from 1,
and the reason.
"""

from collections.abc import Mapping
from typing import Any

from lmlab.model.record import ModelRecord

FINISHED, DIVERGED = "finished", "diverged"
ADVICE = (
    "try a lower optimizers.*.learning_rate, more warm-up (schedules.*.warmup) or a"
    " train.clip of 1 or less"
)


def how_it_diverged(record: ModelRecord | Mapping[str, Any]) -> str:
    """Where a run diverged and why, such as "diverged at step 12: the loss is nan".

    Empty if it did not diverge; a record from before the key `status` is of a run that finished.
    """
    values = record.model_dump() if isinstance(record, ModelRecord) else record
    if values.get("status", FINISHED) != DIVERGED:
        return ""
    divergence = values["diverged"]
    return f"{DIVERGED} at step {divergence['step']:,}: {divergence['reason']}"
