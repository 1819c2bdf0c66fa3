"""Which runs are of one variant, what tells variants apart, and what would make comparing them
unfair.

Runs are of one variant where what they used is the same but for the seeds: the params that
mattered, the code and the text. Options of parts that no choice names do not matter, nor what only
steers logs, samples, probes and pictures.
"""

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import Any

from lmlab.core import registry
from lmlab.experiments.compare.run import SEEDS, WORKSPACE, Run

INERT = (
    "shard",  # the shards come out the same
    "train.log_every",
    "train.validate_every",
    "train.sample_every",
    "train.snapshots",
    "train.checkpoint_seconds",
    "evaluate.prompts",
    "evaluate.sample_tokens",
    "evaluate.temperature",
    "evaluate.seed",
    "evaluate.measures",  # which of them were taken
    "measures",
    "probe",
    "probes",
    "report",
    "search",
)
"""Params, or whole sections, that do not change how a model learns or what is measured of it."""

SHARDS = "data/shards"


@dataclass(frozen=True)
class Variant:
    """Runs that differ in nothing but their seeds."""

    name: str
    """The params that tell it from the others, or the name of its only run."""
    runs: list[Run]
    """A run for each seed."""
    params: dict[str, Any]
    """What mattered of its params, without the seeds."""
    others: list[Run] = field(default_factory=list)
    """Runs with the seeds of one of `runs`, and other results."""


def mattering(run: Run) -> dict[str, Any]:
    """A run's params that had a part in its results, by dotted keys, seeds included.

    Sections matter, and of the blocks of parts those that a value which matters names.
    """
    blocks = _blocks(run.params)
    of_parts = {kind.partition(".")[0] for kind in _kinds()}
    found = {
        key: value
        for key, value in run.params.items()
        if key.partition(".")[0] not in of_parts and not _inert(key)
    }
    waiting = list(found.values())
    while waiting:
        value = waiting.pop()
        named = blocks.pop(value, {}) if isinstance(value, str) else {}
        found |= named
        waiting += named.values()
    return {
        key: value for key, value in found.items() if value != {}
    }  # a part without options: its name is enough


def chosen_parts(run: Run, mattered: dict[str, Any]) -> dict[str, str]:
    """Of a run's params that mattered those that name a part, with its name."""
    names = _part_names() | _blocks(run.params).keys()
    return {
        key: value for key, value in mattered.items() if isinstance(value, str) and value in names
    }


@cache
def _kinds() -> frozenset[str]:
    return frozenset(registry.kinds())


@cache
def _part_names() -> frozenset[str]:
    return frozenset(name for kind in _kinds() for name in registry.names(kind))


def _blocks(params: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """The options of parts by the parts' names; of those that share a name, such as `identity`,
    together.
    """
    blocks: dict[str, dict[str, Any]] = {}
    for key, value in params.items():
        words = key.split(".")
        for depth in range(1, len(words)):
            if ".".join(words[:depth]) in _kinds():
                blocks.setdefault(words[depth], {})[key] = value
    return blocks


def _inert(key: str) -> bool:
    return any(key == one or key.startswith(f"{one}.") for one in INERT)


def group(runs: Iterable[Run]) -> tuple[list[Variant], list[str]]:
    """The variants there are, in the order of their first runs, and a line for each that has a seed
    more than once.

    Of runs with the same seeds the first is kept. A variant's name holds the params that not all
    variants share.
    """
    apart: dict[str, list[Run]] = {}
    params: dict[str, dict[str, Any]] = {}
    for run in runs:
        mattered = {key: value for key, value in mattering(run).items() if key not in SEEDS}
        identity = repr((sorted(mattered.items()), sorted(run.made_with.items()), run.arm))
        apart.setdefault(identity, []).append(run)
        params[identity] = mattered
    names = _names([params[identity] for identity in apart], [same[0] for same in apart.values()])
    variants, notes = [], []
    for (identity, same), name in zip(apart.items(), names):
        kept: dict[tuple[Any, ...], Run] = {}
        others: list[Run] = []
        for run in same:
            kept.setdefault(run.seeds, run)
        for run in same:
            first = kept[run.seeds]
            if run is not first and run.measures != first.measures:
                others.append(run)
                notes.append(
                    f"{run.name} has the params, seeds and code of {first.name}, yet other"
                    f" results: {first.name} counts, and"
                    " a verdict that would not stand with the other is unsettled"
                )
            elif (
                run is not first and run.name != WORKSPACE
            ):  # which usually holds what was committed or applied
                notes.append(
                    f"{run.name} has the params and seeds of {first.name}, and counts once"
                )
        variants.append(Variant(name, list(kept.values()), params[identity], others))
    return variants, notes


def differing(variants: Sequence[dict[str, Any]]) -> list[str]:
    """The keys that do not have one value in all variants; options of a part that only one of them
    uses are left out.
    """
    keys = dict.fromkeys(key for params in variants for key in params)
    return [
        key for key in keys if len({repr(params[key]) for params in variants if key in params}) > 1
    ]


def _names(params: list[dict[str, Any]], first: list[Run]) -> list[str]:
    keys = differing(params)
    ends = [key.rpartition(".")[2] for key in keys]
    short = {key: end if ends.count(end) == 1 else key for key, end in zip(keys, ends)}
    names = [
        run.arm
        or " ".join(f"{short[key]}={there[key]}" for key in keys if key in there)
        or run.name
        for there, run in zip(params, first)
    ]
    return [
        f"{name} ({run.name})" if names.count(name) > 1 else name for name, run in zip(names, first)
    ]


def unfair(baseline: Variant, variant: Variant) -> Iterator[str]:
    """What the two do not have in common besides what is compared, a line each; a run that diverged
    got less of all.
    """
    ours, theirs = ([run for run in one.runs if not run.broke] for one in (baseline, variant))
    for key, what in (
        ("tokens_seen", "tokens seen in training"),
        ("parameters", "parameters"),
        ("flops", "FLOPs spent on training"),
        ("training_bits", "bits of the numbers multiplied in training"),
    ):
        yield from _unequal(what, ours, theirs, key)
    for split in ("validation", "test"):
        yield from _unequal(f"bytes of {split} text", ours, theirs, f"{split}.bytes")
    yield from _text_seen(ours, theirs)
    apart = differing([baseline.params, variant.params])
    text = [key for key in apart if key.startswith(("download.", "corpora."))]
    shards = [
        {run.made_with[SHARDS] for run in runs if SHARDS in run.made_with}
        for runs in (ours, theirs)
    ]
    if text:
        yield (
            f"another text, or another split of it ({', '.join(text)}): measures of the two are"
            " about different texts"
        )
    elif (
        all(shards)
        and shards[0] != shards[1]
        and not any(key.startswith(("tokenizer.", "tokenizers.")) for key in apart)
    ):
        yield (
            "the tokens learned from differ, though the params that made them do not: the files"
            " in texts/ or code changed"
        )
    yield from _windows(baseline, variant)
    yield from _code(baseline.runs, variant.runs)


def _values(runs: Sequence[Run], key: str) -> set[float]:
    """What the runs have of a measure, of finite numbers."""
    return {value for run in runs if math.isfinite(value := run.measures.get(key, math.nan))}


def _unequal(what: str, ours: Sequence[Run], theirs: Sequence[Run], key: str) -> Iterator[str]:
    one, other = _values(ours, key), _values(theirs, key)
    if one and other and one != other and max(other | one) > 1.01 * min(one | other):
        yield f"{what}: {_range(other)} against the baseline's {_range(one)}"


def _text_seen(ours: Sequence[Run], theirs: Sequence[Run]) -> Iterator[str]:
    """Bytes of training text, told only where as many tokens are another amount of text."""
    if _values(ours, "tokens_seen") == _values(theirs, "tokens_seen"):
        one, other = (
            {seen for run in runs if (seen := _bytes_seen(run))} for runs in (ours, theirs)
        )
        if one and other and max(one | other) > 1.01 * min(one | other):
            yield (
                f"bytes of text seen in training: about {_range(other)} against the baseline's"
                f" {_range(one)}"
            )


def _bytes_seen(run: Run) -> float | None:
    """As many as the tokens come to by those of the validation text."""
    measures = run.measures
    of_token = measures.get("bytes_per_token")
    if of_token is None and measures.get("validation.tokens"):
        of_token = measures.get("validation.bytes", math.nan) / measures["validation.tokens"]
    seen = measures.get("tokens_seen", math.nan) * (math.nan if of_token is None else of_token)
    return None if math.isnan(seen) else seen


def _range(values: set[float]) -> str:
    low, high = min(values), max(values)
    return f"{low:,.0f}" if round(low) == round(high) else f"{low:,.0f} to {high:,.0f}"


def _windows(baseline: Variant, variant: Variant) -> Iterator[str]:
    for key, what in (
        ("window", "tokens in an evaluation window"),
        ("stride", "tokens between evaluation windows"),
    ):
        one, other = _values(baseline.runs, key), _values(variant.runs, key)
        if one and other and one != other:
            yield (
                f"{what}: {_range(other)} against {_range(one)}; that alone changes what is"
                " measured"
            )


def _code(ours: Sequence[Run], theirs: Sequence[Run]) -> Iterator[str]:
    """Files that both used, in different states. Those that only one used belong to a part that it
    chose.
    """
    files = [
        {path: run.made_with[path] for run in runs for path in run.made_with if path != SHARDS}
        for runs in (ours, theirs)
    ]
    changed = sorted(
        path for path in files[0].keys() & files[1].keys() if files[0][path] != files[1][path]
    )
    if changed:
        more = f" and {len(changed) - 3} more" if len(changed) > 3 else ""
        yield f"another version of the code: {', '.join(changed[:3])}{more}"


def same_tokenizer(one: Variant, other: Variant) -> bool:
    """Whether a token is the same in both, so that costs for each token compare."""
    apart = differing([one.params, other.params])
    vocabulary_size = [_values(variant.runs, "vocabulary_size") for variant in (one, other)]
    return vocabulary_size[0] == vocabulary_size[1] and not any(
        key.startswith(("tokenizer.", "tokenizers.", "download.", "corpora.")) for key in apart
    )
