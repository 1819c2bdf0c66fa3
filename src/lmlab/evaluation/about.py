"""How a measure's numbers may be compared between runs: the record written beside them.

`evaluate` writes one `About` for each measure into measures.json, so that results can be compared
years later without the code that produced them.
"""

from typing import Any

from pydantic import BaseModel, ConfigDict

WINDOW = "window"
"""Tokens in a scoring window."""
STRIDE = "stride"
"""Tokens between the starts of two scoring windows."""
VALIDATED_AT = "validated_at"
"""Tokens trained on at the first and at the last validation in the log, and the number of
validations.
"""


class About(BaseModel):
    """What to know before runs are compared by one measure's numbers.

    Each entry names numbers as they stand below the measure's own name, without that name. It may
    be a pattern such as `tokens_to.*`.
    """

    model_config = ConfigDict(frozen=True, extra="ignore")

    less_is_better: tuple[str, ...] = ()
    """Less is better whatever else happens, as for a loss on held-out text or a cost."""
    more_is_better: tuple[str, ...] = ()
    """More is better whatever else happens, as for accuracy on held-out text."""
    across_tokenizers: tuple[str, ...] = ()
    """May be compared between runs with different tokenizers."""
    facts: tuple[str, ...] = ()
    """Describe what was measured, not how well the model did."""
    decided_by: dict[str, dict[str, Any]] = {}
    """For each pattern, what must be equal before the numbers are compared: a dotted param, WINDOW,
    STRIDE or VALIDATED_AT, with its value; null where the value stands in the run's params.
    """
    options: dict[str, Any] | None = None
    """The measure's options that decide its numbers; None where they too stand in the run's params.
    """
