"""Which runs are of one variant, what tells variants apart, and what would make comparing them
unfair.

Runs are of one variant where everything they used but the seeds is the same: the params that
mattered, the code and the text. Options of parts that were not chosen do not matter, nor does what
only steers logs, samples, probes and pictures.
"""

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import Any

from lmlab.core import registry
from lmlab.core.params import Values
from lmlab.data.start import AS_IT_WAS
from lmlab.experiments.compare.run import SEEDS, WORKSPACE, Run
from lmlab.experiments.wording import few

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
    "start",  # `Run.start` says without seeds which run it is; see AS_IT_WAS
    "measures",
    "probe",
    "probes",
    "report",
    "search",
)
"""Params, or whole sections, that do not change how a model learns or what is measured of it."""

FROM_SCRATCH = "scratch"
"""Params of how a start is changed, with their value where it is not."""
SHARDS = "data/shards"
TEXT = ("download.", "corpora.")
"""How the params begin that decide the text."""
TOKENIZER = ("tokenizer.", "tokenizers.")
MOST_FILES = 3
"""Changed files of code that are listed."""
LARGER = 1.01
"""The ratio from which amounts count as unequal."""


@dataclass(frozen=True)
class Variant:
    """Runs that differ in nothing but their seeds."""

    name: str
    """The params that tell it from the others, or the name of its only run."""
    runs: list[Run]
    """A run for each seed."""
    params: Values
    """Those of its params that mattered, without the seeds."""
    others: list[Run] = field(default_factory=list)
    """Runs with the seeds of one of `runs`, and other results."""


def mattering(run: Run) -> Values:
    """A run's params that had a part in its results, by dotted key, seeds included.

    Sections matter, and of the blocks of parts those whose name is a value that matters.
    """
    blocks = _blocks(run.params)
    of_parts = {kind.partition(".")[0] for kind in _kinds()}
    mattered = {
        key: value
        for key, value in run.params.items()
        if key.partition(".")[0] not in of_parts and not _inert(key, run.params)
    }
    mattered["start"] = run.start or FROM_SCRATCH
    for key, nothing in AS_IT_WAS.items():
        if run.start and run.params.get(key, nothing) != nothing:
            mattered[key] = run.params[key]
    pending = list(mattered.values())
    while pending:
        value = pending.pop()
        options = blocks.pop(value, {}) if isinstance(value, str) else {}
        mattered |= options
        pending += options.values()
    # of a part without options the name is enough
    return {key: value for key, value in mattered.items() if value != {}}


def chosen_parts(run: Run, mattered: Values) -> dict[str, str]:
    """Of a run's params that mattered, those that name a part, with its name."""
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


def _blocks(params: Values) -> dict[str, Values]:
    """The options of parts by the parts' names.

    Those of parts that share a name, such as `identity`, are together.
    """
    blocks: dict[str, Values] = {}
    for key, value in params.items():
        words = key.split(".")
        for depth in range(1, len(words)):
            if ".".join(words[:depth]) in _kinds():
                blocks.setdefault(words[depth], {})[key] = value
    return blocks


def _inert(key: str, params: Values) -> bool:
    """Whether a param has no part in results. How often is validated has one where that decides
    when a run ends, or with which weights.
    """
    by_validation = params.get("train.keep") == "best" or bool(params.get("train.patience"))
    if key == "train.validate_every" and by_validation:
        return False
    return any(key == inert or key.startswith(f"{inert}.") for inert in INERT)


def group(runs: Iterable[Run]) -> tuple[list[Variant], list[str]]:
    """The variants in the order of their first runs, and a line for each run whose seeds came
    before.

    Of runs with the same seeds the first is kept. A variant's name holds the params that not all
    variants share.
    """
    alike: dict[str, list[Run]] = {}
    params: dict[str, Values] = {}
    for run in runs:
        mattered = {key: value for key, value in mattering(run).items() if key not in SEEDS}
        identity = repr((sorted(mattered.items()), sorted(run.made_with.items()), run.arm))
        alike.setdefault(identity, []).append(run)
        params[identity] = mattered
    first_runs = [of_one[0] for of_one in alike.values()]
    names = _names([params[identity] for identity in alike], first_runs)
    variants, notes = [], []
    for name, (identity, of_one) in zip(names, alike.items()):
        first_of_seeds: dict[tuple[Any, ...], Run] = {}
        others: list[Run] = []
        for run in of_one:
            first = first_of_seeds.setdefault(run.seeds, run)
            if run is first:
                continue
            if run.measures != first.measures:
                others.append(run)
                notes.append(
                    f"{run.name} has the params, seeds and code of {first.name}, yet other"
                    f" results: {first.name} counts, and a verdict that would not stand with the"
                    " other is unsettled"
                )
            elif run.name != WORKSPACE:  # which usually holds what was committed or applied
                notes.append(
                    f"{run.name} has the params and seeds of {first.name}, and counts once"
                )
        variants.append(Variant(name, list(first_of_seeds.values()), params[identity], others))
    return variants, notes


def differing(variants: Sequence[Values]) -> list[str]:
    """The keys that do not have one value in all variants.

    Options of a part that only one of them uses are left out.
    """
    values: dict[str, set[str]] = {}
    for params in variants:
        for key, value in params.items():
            values.setdefault(key, set()).add(repr(value))
    return [key for key, different in values.items() if len(different) > 1]


def _names(params: list[Values], first_runs: list[Run]) -> list[str]:
    keys = differing(params)
    ends = [key.rpartition(".")[2] for key in keys]
    short = {key: end if ends.count(end) == 1 else key for key, end in zip(keys, ends)}
    names = []
    for of_variant, run in zip(params, first_runs):
        values = " ".join(f"{short[key]}={of_variant[key]}" for key in keys if key in of_variant)
        names.append(run.arm or values or run.name)
    return [
        f"{name} ({run.name})" if names.count(name) > 1 else name
        for name, run in zip(names, first_runs)
    ]


def paired_runs(baseline: Variant, variant: Variant) -> Iterator[tuple[Run, Run]]:
    """The runs of both with the same seeds; a variant has one run for each seed."""
    ours = {run.seeds: run for run in baseline.runs}
    for run in variant.runs:
        if run.seeds in ours:
            yield ours[run.seeds], run


def unfair(baseline: Variant, variant: Variant) -> Iterator[str]:
    """What the two do not have in common besides what is compared, a line each.

    Runs that diverged do not count: they got less of everything.
    """
    ours = [run for run in baseline.runs if not run.diverged]
    theirs = [run for run in variant.runs if not run.diverged]
    for key, name in (
        ("tokens_seen", "tokens seen in training"),
        ("parameters", "parameters"),
        ("learning_curve.flops", "FLOPs spent on training"),
        ("training_bits", "bits of the numbers multiplied in training"),
        ("validation.bytes", "bytes of validation text"),
        ("test.bytes", "bytes of test text"),
    ):
        yield from _unequal(name, _values(ours, key), _values(theirs, key))
    yield from _text_seen(ours, theirs)
    yield from _other_text(differing([baseline.params, variant.params]), ours, theirs)
    yield from _windows(baseline, variant)
    yield from _code(baseline.runs, variant.runs)


def _values(runs: Sequence[Run], key: str) -> set[float]:
    """The finite numbers that the runs have of a measure."""
    values = [run.measures.get(key, math.nan) for run in runs]
    return {value for value in values if math.isfinite(value)}


def _unequal(name: str, ours: set[float], theirs: set[float], about: str = "") -> Iterator[str]:
    if ours and theirs and ours != theirs and max(ours | theirs) > LARGER * min(ours | theirs):
        yield f"{name}: {about}{_range(theirs)} against the baseline's {_range(ours)}"


def _text_seen(ours: Sequence[Run], theirs: Sequence[Run]) -> Iterator[str]:
    """Bytes of training text, only where as many tokens are another amount of text."""
    if _values(ours, "tokens_seen") == _values(theirs, "tokens_seen"):
        known = all("learning_curve.bytes" in run.measures for run in (*ours, *theirs))
        yield from _unequal(
            "bytes of text seen in training",
            _bytes_seen(ours),
            _bytes_seen(theirs),
            "" if known else "about ",
        )


def _bytes_seen(runs: Sequence[Run]) -> set[float]:
    """As the learning curve counts them; without one, tokens seen, each taken to be as long as
    those of the validation text.
    """
    seen = set()
    for run in runs:
        if "learning_curve.bytes" in run.measures:
            seen.add(run.measures["learning_curve.bytes"])
            continue
        bytes_per_token = run.measures.get("bytes_per_token")
        tokens = run.measures.get("validation.tokens")
        if bytes_per_token is None and tokens:
            bytes_per_token = run.measures.get("validation.bytes", math.nan) / tokens
        if bytes_per_token is not None:
            seen.add(run.measures.get("tokens_seen", math.nan) * bytes_per_token)
    return {amount for amount in seen if amount and not math.isnan(amount)}


def _other_text(keys: list[str], ours: Sequence[Run], theirs: Sequence[Run]) -> Iterator[str]:
    """Where another text was learned from; `keys` are of the params that differ."""
    of_text = [key for key in keys if key.startswith(TEXT)]
    if of_text:
        yield (
            f"another text, or another split of it ({', '.join(of_text)}): measures of the two are"
            " about different texts"
        )
        return
    our_shards, their_shards = (
        {run.made_with[SHARDS] for run in runs if SHARDS in run.made_with}
        for runs in (ours, theirs)
    )
    other_tokenizer = any(key.startswith(TOKENIZER) for key in keys)
    if our_shards and their_shards and our_shards != their_shards and not other_tokenizer:
        yield (
            "the tokens learned from differ, though the params that made them do not: the files"
            " in texts/ or code changed"
        )


def _range(values: set[float]) -> str:
    low, high = min(values), max(values)
    return f"{low:,.0f}" if round(low) == round(high) else f"{low:,.0f} to {high:,.0f}"


def _windows(baseline: Variant, variant: Variant) -> Iterator[str]:
    for key, name in (
        ("window", "tokens in an evaluation window"),
        ("stride", "tokens between evaluation windows"),
    ):
        ours, theirs = _values(baseline.runs, key), _values(variant.runs, key)
        if ours and theirs and ours != theirs:
            yield (
                f"{name}: {_range(theirs)} against {_range(ours)}; that alone changes what is"
                " measured"
            )


def _code(ours: Sequence[Run], theirs: Sequence[Run]) -> Iterator[str]:
    """Files that both used, in different states.

    Those that only one used belong to a part that it chose.
    """
    our_files, their_files = _files(ours), _files(theirs)
    in_both = our_files.keys() & their_files.keys()
    changed = sorted(path for path in in_both if our_files[path] != their_files[path])
    if changed:
        yield f"another version of the code: {few(changed, MOST_FILES)}"


def _files(runs: Sequence[Run]) -> dict[str, str]:
    """MD5 of the files of code, by path."""
    files: dict[str, str] = {}
    for run in runs:
        files |= run.made_with
    files.pop(SHARDS, None)
    return files


def same_tokenizer(first: Variant, second: Variant) -> bool:
    """Whether a token is the same in both, so that losses per token compare."""
    vocabulary_sizes = [_values(variant.runs, "vocabulary_size") for variant in (first, second)]
    if vocabulary_sizes[0] != vocabulary_sizes[1]:
        return False
    keys = differing([first.params, second.params])
    return not any(key.startswith((*TEXT, *TOKENIZER)) for key in keys)
