"""Small pieces of sentences."""

from collections.abc import Sequence


def quantity(number: int, noun: str) -> str:
    """`1 run`, `1,200 runs`."""
    return f"{number:,} {noun}{'s' * (number != 1)}"


def few(items: Sequence[str], most: int) -> str:
    """The first of several, with commas, and how many more there are: `a, b and 3 more`."""
    more = f" and {len(items) - most} more" if len(items) > most else ""
    return ", ".join(items[:most]) + more
