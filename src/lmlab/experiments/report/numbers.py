"""How numbers are written on the page."""

import math
import re
from typing import Any

MINUS = "\N{MINUS SIGN}"
TIMES = "\N{MULTIPLICATION SIGN}"
WRITTEN_NUMBER = re.compile(rf"[-+{MINUS}]?[\d,.]+(e[-+]\d+)?|-")


def is_number(cell: Any) -> bool:
    """Whether a cell holds a number, one written as text, or nothing."""
    if isinstance(cell, str):
        return cell == "" or WRITTEN_NUMBER.fullmatch(cell) is not None
    return isinstance(cell, int | float) and not isinstance(cell, bool)


def as_text(cell: Any) -> str:
    """A number to four digits, or with commas if it is whole; anything else as it is."""
    if isinstance(cell, bool) or not isinstance(cell, int | float):
        return str(cell)
    if math.isnan(cell):
        return "-"
    if float(cell).is_integer() or abs(cell) >= 10_000:
        return f"{cell:,.0f}"
    return f"{cell:.4g}"


def rounded(cell: Any) -> str:
    """A number with one decimal, or without any from 1000 on."""
    return f"{cell:,.1f}" if isinstance(cell, float) and cell < 1000 else as_text(cell)


def fixed(value: float | None) -> str:
    """Whole numbers with commas, others with four decimals, so that they stand in line."""
    if value is None:
        return ""
    return f"{value:,.0f}" if float(value).is_integer() else f"{value:.4f}"


def signed(value: float) -> str:
    """A difference to three digits."""
    return f"{value:+.3g}".replace("-", MINUS) if math.isfinite(value) else "-"


def words(name: str) -> str:
    """A name in code as it is read: `relu_squared` is "relu squared"."""
    return name.replace("_", " ")


def product(*factors: int | str) -> str:
    """A shape, such as 16 by 128, or the letters that stand for it."""
    written = [f"{factor:,}" if isinstance(factor, int) else factor for factor in factors]
    return f" {TIMES} ".join(written)
