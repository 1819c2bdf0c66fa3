"""How a run ended, as its records say: model.json, metrics.json and measures.json have the same
keys for it.

`status` is FINISHED or DIVERGED; of a run that diverged, `diverged` holds the step that it could
not take, counted from 1, and the reason.
"""

from collections.abc import Mapping
from typing import Any

FINISHED, DIVERGED = "finished", "diverged"
ADVICE = (
    "try a lower optimizers.*.learning_rate, more warm-up (schedules.*.warmup) or a"
    " train.clip of 1 or less"
)


def how_it_diverged(record: Mapping[str, Any]) -> str:
    """Where the run diverged and why, such as "diverged at step 12: the loss is nan"; empty if it
    did not.
    """
    if (
        record.get("status", FINISHED) != DIVERGED
    ):  # records older than the key are of runs that finished
        return ""
    where = record["diverged"]
    return f"{DIVERGED} at step {where['step']:,}: {where['reason']}"
