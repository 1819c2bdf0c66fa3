"""What is to be known of a measure's numbers before runs are compared by them: the record that
stands beside them.
"""

from typing import Any

from pydantic import BaseModel, ConfigDict

WINDOW, STRIDE, VALIDATED_AT = "window", "stride", "validated_at"
"""What may decide a measure beside params, by the names that `decided_by` has for it: tokens in a
window of the scores; tokens between two of those windows; and tokens trained on at the first and
the last validation of the log, and how many validations there were.
"""


class About(BaseModel):
    """The names are those of the measure's numbers below its own, and may be patterns such as
    `tokens_to.*`.
    """

    model_config = ConfigDict(frozen=True, extra="ignore")

    less_is_better: tuple[str, ...] = ()
    """Where less is better whatever else happens, such as a loss on held-out text or a cost."""
    more_is_better: tuple[str, ...] = ()
    across_tokenizers: tuple[str, ...] = ()
    """Those that compare where tokens are not the same."""
    facts: tuple[str, ...] = ()
    """Those that say what was measured, and not how well it went."""
    decided_by: dict[str, dict[str, Any]] = {}
    """For each pattern what has to be equal where numbers are compared: dotted params, or one of
    the names above, with the value, or null where it is to be read from the run's params.
    """
    options: dict[str, Any] | None = None
    """The measure's own that decide its numbers; None where those too are to be read from the run's
    params.
    """
