"""What a measure's number means: which direction is better, what decides it, and whether it
compares across tokenizers.

The code that measures says so itself, and `evaluate` writes that into results/measures.json under
`about`; so a run is understood years later, and without loading the code that measured it. This
module knows the numbers that belong to no part (of the splits, of references, of costs), and the
measures of results that were made before they had `about`.

A direction is given only where less, or more, is better whatever else happens: a loss or a task's
accuracy on held-out text, or a cost. A smaller generalisation gap, less copying and less
calibration error have none: a model that has hardly learned wins in all three.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from fnmatch import fnmatchcase
from typing import Any

from lmlab.core.params import Values
from lmlab.evaluation.about import STRIDE, VALIDATED_AT, WINDOW, About
from lmlab.experiments.compare.run import Run

TORCH, TEXT, CORPUS = "torch", "the validation text", "download.corpus"
MAY_BE_UNKNOWN = (TORCH, TEXT, CORPUS, VALIDATED_AT)
"""Conditions that older results do not have; they are then taken to be as in other runs."""
OF_NO_TEXT = ("timing",)
"""First words of measures that do not depend on which text a run was scored on."""


def _about(
    less: str = "",
    more: str = "",
    across: str = "",
    facts: str = "",
    decided_by: Mapping[str, str] | None = None,
) -> About:
    """A record from words with spaces between them."""
    return About(
        less_is_better=tuple(less.split()),
        more_is_better=tuple(more.split()),
        across_tokenizers=tuple(across.split()),
        facts=tuple(facts.split()),
        decided_by={
            pattern: dict.fromkeys(keys.split()) for pattern, keys in (decided_by or {}).items()
        },
    )


_SCORED = {"*": f"{WINDOW} {STRIDE}"}
_COST = _about(less="*seconds *peak_bytes", more="*tokens_per_second", across="*seconds *bytes")
_SPLIT = _about(
    less="bits_per_byte nats_per_token perplexity",
    more="accuracy",
    across="bits_per_byte",
    facts="tokens bytes",
    decided_by=_SCORED,
)
OF_EVALUATE = {
    "validation": _SPLIT,
    "test": _SPLIT,
    "references": _about(
        facts="*", across="*", decided_by={"*": "evaluate.ngram_order evaluate.ngram_megatokens"}
    ),
    "timing": _COST,
}
"""What `evaluate` and the clock measure of every run, by the first word of its numbers' names."""
OLDER = {
    "learning_curve": _about(
        less="tokens_to.* bytes_to.* flops_to.* mean",
        across="mean bytes bytes_to* flops flops_to*",
        facts="tokens bytes flops *_to_more_than.* *_to_at_most.*",
        decided_by={"*": "train.validate_every", "mean": VALIDATED_AT},
    ),
    "prequential": _about(
        less="bits_per_byte",
        across="bits_per_byte",
        facts="bits bytes learning.* rest.*",
        decided_by={"*": f"train.log_every {WINDOW}"},
    ),
    "generalisation_gap": _about(facts="train.tokens", decided_by=_SCORED),
    "context_gain": _about(decided_by={"*": STRIDE}),
    "induction": _about(facts="period", decided_by={"*": WINDOW}),
    "novelty": _about(
        across="generated.copied.*", facts="characters train_characters validation.*"
    ),
    "minimal_pairs": _about(more="mean accuracy.*", facts="by_length_alone pairs.*"),
    "n_gram_mixture": _about(less="*.bits_per_byte", decided_by=_SCORED),
    "character_classes": _about(decided_by=_SCORED),
    "entropy_gap": _about(less="*", across="*", decided_by=_SCORED),
    "blimp": _about(more="mean accuracy.*", facts="by_length_alone pairs"),
}
"""The measures of the days when results did not yet say this of themselves."""
NOT_DECIDING = {"learning_curve": ("targets",), "novelty": ("lengths",)}
"""Options that decide which numbers a measure has, and not what these are."""

HIGHER = r"accuracy(\..+)?|minimal_pairs(\.mean)?|blimp(\.mean)?|basin_width|tokens_per_second"
"""Last words of other measures where more is better, as a regular expression."""
LOWER = (
    r"bits_per_byte|nats_per_token|perplexity|loss|(?<!calibration_)error|code_length|seconds"
    r"|step_bytes|peak_bytes|(tokens|bytes|flops|seconds)_to(_target|\..+)|tokens_to_recover"
)
"""The same where less is better. Any other measure is only said to be lower or higher."""
PER_TOKEN = re.compile(r"(.+[._])?(nats(_per_token)?|perplexity|accuracy)")
"""Other measures that compare only where a token is the same."""
FACTS = re.compile(
    r"(.+\.)?(window|stride|parameters|tokens_seen|training_bits|vocabulary_size|bytes_per_token|steps|flops"
    r"|tokens|bytes|pairs(\..+)?|characters|train_characters|period|by_length_alone)"
)
"""Other measures that say what a run is, or what was measured, rather than how well it went."""


def known(measure: str, run: Run | None = None) -> tuple[About | None, str]:
    """What a run, or failing that this module, says about a measure, and the number's name in it.

    For `learning_curve.mean` that is the record of `learning_curve`, and `mean`.
    """
    first, _, name = measure.partition(".")
    if run and first in run.about:
        return run.about[first], name
    if not name:
        return None, name
    return OF_EVALUATE.get(first) or OLDER.get(first), name


def _fits(name: str, patterns: Iterable[str]) -> bool:
    return any(fnmatchcase(name, pattern) for pattern in patterns)


def direction(measure: str, runs: Iterable[Run] = ()) -> int:
    """1 where more is better, -1 where less is, whatever else happens.

    0 where neither is, or where the runs disagree.
    """
    directions = {_direction(measure, run) for run in runs if _measured(measure, run)}
    if not directions:
        return _direction(measure, None)
    return directions.pop() if len(directions) == 1 else 0


def _measured(measure: str, run: Run) -> bool:
    return measure in run.measures or measure.partition(".")[0] in run.about


def _direction(measure: str, run: Run | None) -> int:
    about, name = known(measure, run)
    if about:
        return int(_fits(name, about.more_is_better)) - int(_fits(name, about.less_is_better))
    for sign, words in ((1, HIGHER), (-1, LOWER)):
        if re.search(rf"(^|[._])({words})$", measure):
            return sign
    return 0


def is_fact(measure: str, runs: Iterable[Run]) -> bool:
    """Whether a number says what a run is, or what was measured, rather than how well it went."""
    records = [known(measure, run) for run in runs if measure in run.measures]
    return any(
        _fits(name, about.facts) if about else bool(FACTS.fullmatch(measure))
        for about, name in records or [known(measure)]
    )


def is_per_token(measure: str, runs: Iterable[Run]) -> bool:
    """Whether a measure compares only where a token is the same."""
    records = [known(measure, run) for run in runs if _measured(measure, run)]
    return any(
        not _fits(name, about.across_tokenizers) if about else bool(PER_TOKEN.fullmatch(measure))
        for about, name in records or [known(measure)]
    )


def conditions(measure: str, run: Run) -> Values:
    """What decided a run's number beside the run itself, by name: params, the measure's options,
    torch's version, the text.

    None stands for what is not known.
    """
    about, name = known(measure, run)
    first = measure.partition(".")[0]
    values: Values = {TORCH: run.environment.get("torch")}
    if first not in OF_NO_TEXT:
        values |= {CORPUS: run.params.get(CORPUS), TEXT: run.text[:7] or None}
    if about and about.options is not None:
        options = about.options
    else:
        options = _options_in_params(first, run)
    values |= {f"measures.{first}.{key}": value for key, value in options.items()}
    for pattern, deciding in about.decided_by.items() if about else ():
        if fnmatchcase(name, pattern):
            for key, value in deciding.items():
                values[key] = _value(key, run) if value is None else value
    return values


def _options_in_params(measure: str, run: Run) -> Values:
    """A measure's options in a run's params.yaml, without those that do not decide its numbers."""
    prefix = f"measures.{measure}."
    options = {
        key.removeprefix(prefix): value
        for key, value in run.params.items()
        if key.startswith(prefix)
    }
    for key in NOT_DECIDING.get(measure, ()):
        options.pop(key, None)
    return options


def _value(key: str, run: Run) -> Any:
    """What a run has for a key: a param, or one of the things that its results show."""
    if key == WINDOW:
        return run.measures.get(WINDOW, run.params.get("train.context"))
    if key == STRIDE:
        return run.measures.get(STRIDE, run.params.get("evaluate.stride"))
    if key == VALIDATED_AT:
        return _validated_at(run)
    return run.params.get(key)


def _validated_at(run: Run) -> list[float] | None:
    """Tokens seen at the first and the last validation, and how many validations there were."""
    table = run.curves.get("validation")
    if table is None or "tokens" not in table or table.empty:
        return None
    return [float(table["tokens"].iloc[0]), float(table["tokens"].iloc[-1]), len(table)]


def unlike(measure: str, runs: Sequence[Run]) -> str:
    """The first thing that decides a measure and differs between these runs, with its values.

    Empty where nothing does. What a run does not record (torch's version or the text in older
    results, when it validated) is taken to be as in the others.
    """
    of_runs = [conditions(measure, run) for run in runs]
    keys: dict[str, None] = {}
    for of_run in of_runs:
        keys |= dict.fromkeys(of_run)
    for key in keys:
        values = [of_run.get(key) for of_run in of_runs]
        if key in MAY_BE_UNKNOWN:
            values = [value for value in values if value is not None]
        different = list(dict.fromkeys(_shown(value) for value in values))
        if len(different) > 1:
            others = " and others" if len(different) > 3 else ""
            return f"{key} is {' and '.join(different[:3])}{others}"
    return ""


def _shown(value: Any) -> str:
    if value is None:
        return "not known"
    if isinstance(value, float) and value.is_integer():
        return f"{value:.0f}"
    if isinstance(value, list):
        return ", ".join(map(_shown, value))
    return str(value)
