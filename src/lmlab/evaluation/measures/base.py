"""What a measure is: it takes a finished run and everything `evaluate` has open, and gives numbers.

To add one, write a module `measures/<name>.py` with an `Options` model and a final class derived
from `Measure` and named like the module, and add a block `measures.<name>` with its options to
params.yaml. The docstrings here state every rule that tests/test_measures.py checks.

The numbers are written to results/measures.json under the measure's name. Beside them, under
`about`, is written what must be known before runs are compared by them: which direction is better,
what decides them, whether they compare across tokenizers. A measure declares this in class
attributes. A measure that does not apply to a run is left out, with the reason in the list
`left_out`; it never gives a number without meaning.

A number of which only a bound is known is written in a block whose name ends in `_more_than` or
`_at_most`: `tokens_to_more_than.2.5` instead of `tokens_to.2.5`.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from lmlab.core import registry
from lmlab.core.params import Tree
from lmlab.core.registry import Choice
from lmlab.data import documents
from lmlab.data.corpus_manifest import CorpusManifest
from lmlab.data.shards import Shards
from lmlab.data.tokenizers.base import Ids, Tokenizer
from lmlab.evaluation.about import STRIDE, VALIDATED_AT, WINDOW, About
from lmlab.model import processes
from lmlab.model.models.base import LanguageModel
from lmlab.model.record import ModelRecord
from lmlab.model.scoring import Score

Numbers = Mapping[str, "float | Numbers"]
"""Numbers by name, or blocks of them by name."""


class DoesNotApply(Exception):  # noqa: N818 (no error: the run is what it is)
    """A run has nothing for a measure to measure; the message says in one line what is missing."""


@dataclass(frozen=True)
class Trained:
    """A finished run."""

    model: LanguageModel
    saved: ModelRecord
    """Its model.json."""
    shards: Shards
    tokenizer: Tokenizer
    corpus: Path
    """The folder of the corpus, whose splits are Parquet files."""
    manifest: CorpusManifest
    """The corpus's."""
    log: list[dict[str, Any]]
    """The lines of the training log."""
    scores: dict[str, Score]
    """The score of each split that was scored; `validation` always is."""
    stride: int
    """Tokens between the starts of two windows of those scores."""

    @cached_property
    def train(self) -> Ids:
        """The ids of the train split."""
        return self.shards.stream("train")

    def text(self, split: str, characters: int) -> list[str]:
        """The texts of a split, of which at most the first `characters` characters together."""
        texts: list[str] = []
        for _, part, text in documents.read_parts(self.corpus / f"{split}.parquet"):
            if part == 0 or not texts:
                texts.append("")
            texts[-1] += text[:characters]
            characters -= len(text)
            if characters <= 0:
                break
        return texts

    def bits_per_byte(self, split: str, nats_per_token: float) -> float:
        """A loss in nats per token as bits per byte, by the split's own bytes per token."""
        tokens, size = self.shards.count(split, "tokens"), self.shards.count(split, "bytes")
        return nats_per_token / math.log(2) * tokens / size


FROM_SCORES = {"*": (WINDOW, STRIDE)}
"""`decided_by` of a measure whose numbers are computed from the scores of a split."""


class Measure(ABC):
    """A measure, constructed as `Name(options)`.

    Options that cannot work for any run are refused on construction with a UserError.

    The attributes hold names of its numbers below its own name, or patterns of them, such as `mean`
    or `accuracy.*`; `About` says what each attribute means. Each must match a number that the
    measure gives, and a fact has no direction. By default a number has no better direction,
    compares only between runs with the same tokenizer, and is decided by the options alone.

    The name is none of the keys that measures.json has anyway (see `evaluation/measured.py`).
    """

    less_is_better: ClassVar[tuple[str, ...]] = ()
    more_is_better: ClassVar[tuple[str, ...]] = ()
    across_tokenizers: ClassVar[tuple[str, ...]] = ()
    facts: ClassVar[tuple[str, ...]] = ()
    decided_by: ClassVar[Mapping[str, Sequence[str]]] = {}
    """For each pattern, what decides the numbers beside the options: params by dotted key, WINDOW,
    STRIDE or VALIDATED_AT.
    """
    not_deciding: ClassVar[tuple[str, ...]] = ()
    """Options that decide which numbers there are, but not the value of any."""

    @abstractmethod
    def measure(self, trained: Trained) -> Numbers:
        """Measure a run. Raises DoesNotApply where it has nothing to measure.

        The numbers are finite, at least one, plain Python numbers in dicts with text keys (so JSON
        keeps them as they are), and the same each time, whatever the state of the random
        generators. Those of torch and NumPy are left as they were, and so is the model: weights,
        gradients and training mode.

        Every run is either measured or refused by DoesNotApply, however short or odd its texts are
        (one character again and again, no full window). A measure in the default params applies to
        every model.
        """


def chosen(tree: Tree, names: list[str]) -> dict[str, Choice]:
    """The measures listed in `evaluate.measures`, by name.

    Raises UserError with the nearest known name for one that does not exist.
    """
    return {name: registry.choose(tree, "measures", name, "evaluate.measures") for name in names}


def measure_all(
    measures: Mapping[str, Choice], trained: Trained
) -> tuple[dict[str, Numbers], list[str]]:
    """The numbers of each measure, and a line with the reason for each measure left out."""

    def measured(name: str) -> Numbers | str:
        measure: Measure = measures[name].build()
        try:
            return _finite(measure.measure(trained))
        except DoesNotApply as reason:
            return f"{name}: {reason}"

    numbers: dict[str, Numbers] = {}
    left_out: list[str] = []
    for name, found in zip(measures, processes.shared_out(measured, list(measures)), strict=True):
        if isinstance(found, str):
            left_out.append(found)
        else:
            numbers[name] = found
    return numbers, left_out


def _finite(numbers: Numbers) -> Numbers:
    """The same numbers; raises DoesNotApply naming the first that is NaN or infinite."""
    for name, value in flat(numbers):
        if not math.isfinite(value):
            raise DoesNotApply(f"{name} is {value}, not a finite number")
    return numbers


def about(measures: Mapping[str, Choice], trained: Trained) -> dict[str, About]:
    """How the numbers of each measure may be compared between runs."""
    values = {
        WINDOW: trained.model.context,
        STRIDE: trained.stride,
        VALIDATED_AT: _validated_at(trained),
    }
    return {name: _about(choice, values) for name, choice in measures.items()}


def _about(choice: Choice, values: Mapping[str, Any]) -> About:
    """The declarations of a measure with its options; `values` are those of WINDOW and its like."""
    part: type[Measure] = choice.part
    decided_by = {
        pattern: {key: values.get(key) for key in keys} for pattern, keys in part.decided_by.items()
    }
    options = choice.options.model_dump(exclude=set(part.not_deciding))
    return About(
        less_is_better=part.less_is_better,
        more_is_better=part.more_is_better,
        across_tokenizers=part.across_tokenizers,
        facts=part.facts,
        decided_by=decided_by,
        options=options,
    )


def _validated_at(trained: Trained) -> list[float] | None:
    """The value of VALIDATED_AT; None without any validation."""
    tokens = [float(row["tokens"]) for row in trained.log if "validation_nats" in row]
    return [tokens[0], tokens[-1], float(len(tokens))] if tokens else None


def flat(numbers: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, float]]:
    """Every number with its dotted name."""
    for name, value in numbers.items():
        if isinstance(value, Mapping):
            yield from flat(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", float(value)


def evenly(first: int, last: int, count: int) -> list[int]:
    """At most `count` integers from `first` to `last` inclusive, evenly spaced, none repeated."""
    return np.unique(np.linspace(first, last, count).astype(np.int64)).tolist()
