"""What a measure's number means: which way is better, what decides it, and whether it compares
across tokenizers.

The code that measures says so itself, and `evaluate` writes that into results/measures.json under
`about`; so a run is understood years later, and without loading the code that measured it. What is
told here is for the numbers that are no part's (of the splits, of references, of costs), and for
the measures of results that were made before they had `about`.

A direction is given only where less, or more, is better whatever else happens: a loss or a task's
accuracy on held-out text, or a cost. A smaller generalisation gap, less copying and less
calibration error are not: a model that has hardly learned wins in all three.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from fnmatch import fnmatchcase
from typing import Any

from lmlab.evaluation.about import STRIDE, VALIDATED_AT, WINDOW, About
from lmlab.experiments.compare.run import Run

TORCH, TEXT, CORPUS = "torch", "the validation text", "download.corpus"
OF_NO_TEXT = ("timing",)
"""First words of measures that do not depend on which text a run was scored on."""


def _about(
    less: str = "",
    more: str = "",
    across: str = "",
    facts: str = "",
    decided_by: Mapping[str, str] | None = None,
) -> About:
    """A record from words."""
    deciding = {
        pattern: dict.fromkeys(words.split()) for pattern, words in (decided_by or {}).items()
    }
    words = {
        "less_is_better": less,
        "more_is_better": more,
        "across_tokenizers": across,
        "facts": facts,
    }
    return About(**{key: tuple(value.split()) for key, value in words.items()}, decided_by=deciding)  # type: ignore[arg-type]


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
        less="tokens_to.* flops_to.* mean",
        across="flops_to* mean flops",
        facts="tokens flops *_to_more_than.* *_to_at_most.*",
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
"""The measures there were when results did not yet say this of themselves."""
NOT_DECIDING = {"learning_curve": ("targets",), "novelty": ("lengths",)}
"""Their options that decide which numbers there are, and none of them."""

HIGHER = r"""accuracy(\..+)?|minimal_pairs(\.mean)?|blimp(\.mean)?|basin_width|tokens_per_second"""
"""Last words of other measures of which more is better, as a regular expression."""
LOWER = (
    r"bits_per_byte|nats_per_token|perplexity|loss|(?<!calibration_)error|code_length|seconds"
    r"|step_bytes|peak_bytes|(tokens|flops|seconds)_to(_target|\..+)|tokens_to_recover"
)
"""The same where less is better. Of any other measure it is only said which variant's is lower or
higher.
"""
PER_TOKEN = re.compile(r"(.+[._])?(nats(_per_token)?|perplexity|accuracy)")
"""Other measures that compare only where a token is the same."""
FACTS = re.compile(
    r"(.+\.)?(window|stride|parameters|tokens_seen|training_bits|vocabulary_size|bytes_per_token|steps|flops"
    r"|tokens|bytes|pairs(\..+)?|characters|train_characters|period|by_length_alone)"
)
"""Other measures that say what a run is, or what was measured, rather than how well it went."""


def known(measure: str, run: Run | None = None) -> tuple[About | None, str]:
    """What a run, or failing that this module, says of a measure, and the number's name below the
    measure's.
    """
    first, _, rest = measure.partition(".")
    if run and first in run.about:
        return run.about[first], rest
    return (OF_EVALUATE.get(first) or OLDER.get(first)) if rest else None, rest


def _fits(name: str, patterns: Iterable[str]) -> bool:
    return any(fnmatchcase(name, pattern) for pattern in patterns)


def direction(measure: str, runs: Iterable[Run] = ()) -> int:
    """1 where more is better, -1 where less is; 0 where neither is whatever else happens, or where
    the runs disagree.
    """
    directions = {_direction(measure, run) for run in runs if _measured(measure, run)} or {
        _direction(measure, None)
    }
    return directions.pop() if len(directions) == 1 else 0


def _measured(measure: str, run: Run) -> bool:
    return measure in run.measures or measure.partition(".")[0] in run.about


def _direction(measure: str, run: Run | None) -> int:
    about, name = known(measure, run)
    if about:
        return int(_fits(name, about.more_is_better)) - int(_fits(name, about.less_is_better))
    for sign, words in ((1, HIGHER), (-1, LOWER)):
        if re.search(rf"(^|[._])({words})$".replace("\n", ""), measure):
            return sign
    return 0


def is_fact(measure: str, runs: Iterable[Run]) -> bool:
    """Whether a number says what a run is, or what was measured, rather than how well it went."""
    of_runs = [known(measure, run) for run in runs if measure in run.measures] or [known(measure)]
    return any(
        _fits(name, about.facts) if about else bool(FACTS.fullmatch(measure))
        for about, name in of_runs
    )


def is_per_token(measure: str, runs: Iterable[Run]) -> bool:
    """Whether a measure compares only where a token is the same."""
    of_runs = [known(measure, run) for run in runs if _measured(measure, run)] or [known(measure)]
    return any(
        not _fits(name, about.across_tokenizers) if about else bool(PER_TOKEN.fullmatch(measure))
        for about, name in of_runs
    )


def conditions(measure: str, run: Run) -> dict[str, Any]:
    """What decided a run's number beside the run itself, by name: params, the measure's options,
    torch's version, the text.

    None stands for what is not known.
    """
    about, name = known(measure, run)
    first = measure.partition(".")[0]
    found: dict[str, Any] = {TORCH: run.environment.get("torch")}
    if first not in OF_NO_TEXT:
        found |= {CORPUS: run.params.get(CORPUS), TEXT: run.text[:7] or None}
    if about is None or about.options is None:
        own = f"measures.{first}."
        options = {
            key.removeprefix(own): value for key, value in run.params.items() if key.startswith(own)
        }
        options = {
            key: value for key, value in options.items() if key not in NOT_DECIDING.get(first, ())
        }
    else:
        options = dict(about.options)
    found |= {f"measures.{first}.{key}": value for key, value in options.items()}
    for pattern, deciding in about.decided_by.items() if about else ():
        if fnmatchcase(name, pattern):
            found |= {
                key: _value(key, run) if value is None else value for key, value in deciding.items()
            }
    return found


def _value(key: str, run: Run) -> Any:
    """What a run has at a key: a param, or one of the things that are read off its results."""
    if key == WINDOW:
        return run.measures.get(WINDOW, run.params.get("train.context"))
    if key == STRIDE:
        return run.measures.get(STRIDE, run.params.get("evaluate.stride"))
    if key == VALIDATED_AT:
        return _validated_at(run)
    return run.params.get(key)


def _validated_at(run: Run) -> list[float] | None:
    table = run.curves.get("validation")
    if table is None or "tokens" not in table or table.empty:
        return None
    return [float(table["tokens"].iloc[0]), float(table["tokens"].iloc[-1]), len(table)]


def unlike(measure: str, runs: Sequence[Run]) -> str:
    """What decides a measure and is not the same in all of these runs, with its values; empty where
    all of it is.

    What a run does not tell (torch's version or the text in older results, when it validated) is
    taken to be as in the others.
    """
    found = [conditions(measure, run) for run in runs]
    for key in dict.fromkeys(key for one in found for key in one):
        values = [one.get(key) for one in found]
        if key in (TORCH, TEXT, CORPUS, VALIDATED_AT):
            values = [value for value in values if value is not None]
        different = list(dict.fromkeys(_shown(value) for value in values))
        if len(different) > 1:
            return f"{key} is {' and '.join(different[:3])}" + (
                " and others" if len(different) > 3 else ""
            )
    return ""


def _shown(value: Any) -> str:
    if value is None:
        return "not known"
    if isinstance(value, float) and value.is_integer():
        return f"{value:.0f}"
    if isinstance(value, list):
        return ", ".join(map(_shown, value))
    return str(value)
