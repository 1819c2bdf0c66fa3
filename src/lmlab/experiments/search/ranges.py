"""What a searched key may be, as typed: choices `a,b,c`, or a range of numbers."""

import math
import re
from typing import Any

from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)
from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from lmlab.core.errors import UserError

RANGE = re.compile(r"(log:)?([^/:]+?)\.\.([^/:]+?)(?:/([^/:]+))?")


def parse(key: str, text: str, present: Any) -> BaseDistribution:
    """`a,b,c` (choices), `low..high`, `low..high/step` or `log:low..high`; whole numbers where the
    `present` value is one. Raises UserError naming the key for what cannot be.
    """
    if ".." not in text:
        return _choices(key, text)
    logarithmic, low, high, step = _bounds(key, text)
    if isinstance(present, int) and not isinstance(present, bool):
        if any(isinstance(number, float) for number in (low, high, step)):
            raise UserError(
                f"--key {key}={text}: params.yaml has a whole number there; give whole numbers"
            )
        step = step or 1
        return IntDistribution(low, high - (high - low) % step, logarithmic, step)
    if not isinstance(present, float):
        raise UserError(
            f"--key {key}={text}: params.yaml has {present!r} there, no number; give choices such"
            " as a,b"
        )
    if step is not None:
        steps = math.floor((high - low) / step + 1e-9)
        high = float(f"{low + steps * step:.12g}")  # Optuna lowers it too, but warns
    return FloatDistribution(low, high, logarithmic, step)


def ends(distribution: BaseDistribution) -> list[Any]:
    """All choices, or the two ends of a range."""
    if isinstance(distribution, CategoricalDistribution):
        return list(distribution.choices)
    assert isinstance(distribution, IntDistribution | FloatDistribution)
    return [distribution.low, distribution.high]


def _choices(key: str, text: str) -> CategoricalDistribution:
    choices = [_scalar(word) for word in text.split(",")]
    distinct = set(map(repr, choices))
    if len(distinct) < 2 or len(distinct) < len(choices):
        raise UserError(
            f"--key {key}={text}: give two different values or more, or a range such as 2..8"
        )
    return CategoricalDistribution(choices)


def _bounds(key: str, text: str) -> tuple[bool, Any, Any, Any]:
    """Whether a range is logarithmic, its two ends, and its step or None."""
    match = RANGE.fullmatch(text)
    words = [word for word in match.groups()[1:] if word is not None] if match else []
    numbers = [_scalar(word) for word in words]
    are_numbers = all(
        isinstance(number, int | float) and not isinstance(number, bool) for number in numbers
    )
    if match is None or not are_numbers:
        raise UserError(
            f"--key {key}={text}: a range is low..high, low..high/step or log:low..high, in numbers"
        )
    logarithmic = match[1] is not None
    low, high, *steps = numbers
    step = steps[0] if steps else None
    if not low < high:
        raise UserError(f"--key {key}={text}: {low} is not below {high}")
    if logarithmic and (low <= 0 or step):
        raise UserError(f"--key {key}={text}: a logarithmic range begins above 0 and has no step")
    if step is not None and not 0 < step <= high - low:
        raise UserError(
            f"--key {key}={text}: the step should be above 0 and no more than {high - low}"
        )
    return logarithmic, low, high, step


def _scalar(text: str) -> Any:
    """A value as YAML reads it; a text where it is none."""
    try:
        value = YAML(typ="safe", pure=True).load(text)
    except (YAMLError, ValueError, RecursionError):
        return text
    return text if isinstance(value, dict | list) else value
