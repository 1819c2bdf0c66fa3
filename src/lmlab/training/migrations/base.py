"""What a migration is: it says from which old rows the row of a new token is made.

A token is new where the start's tokenizer has none of the same bytes; all others keep their rows,
whatever the migration. Rows are those of the input embedding and of the output head, the same with
the optimizer's state. Applied by `lmlab.training.migrating`.
"""

from collections.abc import Sequence
from typing import ClassVar


class Migration:
    """Final classes take `(options)`. A new token's row is the mean of the old rows of the ids that
    these methods give; where they give none, as here, it stays as it was drawn.

    `spelling` holds the old ids that spell the token, at least one, and `used` all old ids that
    spell the text.
    """

    adds_inner_n_grams: ClassVar[bool] = False
    """Whether the input also has what an embedding of n-grams adds for those within the spelling
    that end with it.
    """

    def input_sources(self, spelling: Sequence[int], used: Sequence[int]) -> Sequence[int]:
        """The old ids for a row of the input embedding."""
        return ()

    def output_sources(self, spelling: Sequence[int], used: Sequence[int]) -> Sequence[int]:
        """The old ids for a row of the output head."""
        return ()
