"""Short names of variants for charts: the fewest params that tell them apart.

A variant's own name lists every param that not all share. Over two texts these are a dozen, and cut
off at the edge of a chart they all begin alike.
"""

from collections.abc import Iterator, Sequence
from itertools import combinations
from typing import Any

from lmlab.core.params import Values
from lmlab.experiments.compare.variants import Variant, differing

LONGEST = 28
"""Characters in a label."""
MOST_KEYS = 3
"""Params that a label is looked for in; where more are needed, all of them are taken."""
ELLIPSIS = "\N{HORIZONTAL ELLIPSIS}"


def labels(variants: Sequence[Variant]) -> list[str]:
    """A label for each variant, at most LONGEST characters, no two alike."""
    if len(variants) == 1:
        return [_shorten(variants[0].name)]
    chosen = _of_arms(variants) or _of_params([variant.params for variant in variants])
    whole = [label or variant.name for label, variant in zip(chosen, variants, strict=True)]
    unique = [
        f"{label} ({variant.runs[0].name})" if whole.count(label) > 1 else label
        for label, variant in zip(whole, variants, strict=True)
    ]
    return _numbered([_shorten(label) for label in unique])


def _of_arms(variants: Sequence[Variant]) -> list[str]:
    """The names of the arms, where all are of studies and these tell them apart; otherwise
    nothing.
    """
    arms = [variant.runs[0].arm.rpartition(":")[2] for variant in variants]
    return arms if all(arms) and len(set(arms)) == len(arms) else []


def _of_params(params: Sequence[Values]) -> list[str]:
    """The values of the fewest params in which all differ, such as "grammar width=64"."""
    keys = differing(params)
    values = [
        {key: repr(of_variant[key]) for key in keys if key in of_variant} for of_variant in params
    ]
    distinguishing = (subset for subset in _subsets(keys) if _distinguishes(subset, values))
    chosen = next(distinguishing, tuple(keys))
    short = _short(chosen)
    return [
        " ".join(_named(short[key], of_variant[key]) for key in chosen if key in of_variant)
        for of_variant in params
    ]


def _short(keys: Sequence[str]) -> dict[str, str]:
    """Each key by its last word, such as rate for optimizers.adamw.learning_rate.

    By more words where two would be alike.
    """
    short = dict(zip(keys, keys, strict=True))
    for separator in (".", "_"):
        ends = [key.rpartition(separator)[2] for key in short.values()]
        short = {
            key: end if ends.count(end) == 1 else short[key]
            for key, end in zip(keys, ends, strict=True)
        }
    return short


def _subsets(keys: Sequence[str]) -> Iterator[tuple[str, ...]]:
    """Small sets of keys, the smallest first."""
    for count in range(1, MOST_KEYS + 1):
        yield from combinations(keys, count)


def _distinguishes(keys: Sequence[str], values: Sequence[dict[str, str]]) -> bool:
    """Whether no two variants are alike in these keys, and each has one of them."""
    rows = [tuple(of_variant.get(key, "") for key in keys) for of_variant in values]
    return len(set(rows)) == len(rows) and all(any(row) for row in rows)


def _named(key: str, value: Any) -> str:
    """A choice by its name alone, anything else with its key."""
    return value if isinstance(value, str) and value else f"{key}={value}"


def _shorten(label: str) -> str:
    """A label without its middle where it is too long: variants that begin alike may end
    differently.
    """
    if len(label) <= LONGEST:
        return label
    head = (LONGEST - 1) // 2
    return label[:head].rstrip() + ELLIPSIS + label[head + 1 - LONGEST :].lstrip()


def _numbered(labels: list[str]) -> list[str]:
    """The labels with a number before each that is not unique."""
    return [
        _shorten(f"{number}: {label}") if labels.count(label) > 1 else label
        for number, label in enumerate(labels, start=1)
    ]
