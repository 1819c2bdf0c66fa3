"""What a measure is: it gets a finished run with everything that `evaluate` has open, and gives
plain numbers.

They land in results/measures.json under the measure's name. A measure that has nothing to measure
in a run is left out, with the reason in the list `left_out` there; it never gives a number that
means nothing. What has to be known before runs are compared by its numbers (which way is better,
what decides them, whether they compare across tokenizers) a measure declares in class attributes,
and it lands in the same file under `about`.

Where a number is known to be more than something, or at most that, and no more is known, the bound
stands in a block of the same name that ends in `_more_than` or `_at_most`:
`tokens_to_more_than.2.5` for `tokens_to.2.5`.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from lmlab.core import registry
from lmlab.core.params import Tree
from lmlab.core.registry import Choice
from lmlab.data import documents
from lmlab.data.shards import Shards
from lmlab.data.tokenizers.base import Ids, Tokenizer
from lmlab.evaluation.about import STRIDE, VALIDATED_AT, WINDOW, About
from lmlab.model.models.base import LanguageModel
from lmlab.model.record import ModelRecord
from lmlab.model.scoring import Score

Numbers = dict[str, Any]
"""Numbers by name, or dicts of them by name, and so on."""


class DoesNotApply(Exception):  # noqa: N818 (no error: the run is what it is)
    """A run has nothing for a measure to measure; the message says what is missing."""


@dataclass(frozen=True)
class Trained:
    """A finished run."""

    model: LanguageModel
    saved: ModelRecord
    """Its model.json."""
    shards: Shards
    tokenizer: Tokenizer
    corpus: Path
    """The folder of the corpus, its splits in Parquet."""
    manifest: dict[str, Any]
    """The corpus's."""
    log: list[dict[str, Any]]
    """The lines of the training's log."""
    scores: dict[str, Score]
    """Of each split that was scored, which is `validation`."""
    stride: int
    """Tokens between the windows of those scores."""

    @cached_property
    def train(self) -> Ids:
        """The train split's ids."""
        return self.shards.stream("train")

    def text(self, split: str, characters: int) -> list[str]:
        """A split's texts, about the first `characters` of them."""
        taken: list[str] = []
        for _, part, text in documents.read_parts(self.corpus / f"{split}.parquet"):
            if part == 0 or not taken:
                taken.append("")
            taken[-1] += text[:characters]
            characters -= len(text)
            if characters <= 0:
                break
        return taken

    def bits_per_byte(self, split: str, nats_per_token: float) -> float:
        """What a cost per token comes to for each byte of a split's text, by the split's own bytes
        per token.
        """
        return (
            nats_per_token
            / math.log(2)
            * self.shards.count(split, "tokens")
            / self.shards.count(split, "bytes")
        )


SCORED = {"*": (WINDOW, STRIDE)}
"""What decides numbers that are made from the scores of a split."""


class Measure(ABC):
    """Final classes take `(options)`; what cannot work whatever the run is refused there, with a
    UserError.

    The attributes hold patterns of the names of its numbers, such as `mean` or `accuracy.*`;
    `About` says what each means. A number that none of them fits is only ever higher or lower,
    compares within one tokenizer, and is decided by the options.
    """

    less_is_better: ClassVar[tuple[str, ...]] = ()
    more_is_better: ClassVar[tuple[str, ...]] = ()
    across_tokenizers: ClassVar[tuple[str, ...]] = ()
    facts: ClassVar[tuple[str, ...]] = ()
    decided_by: ClassVar[Mapping[str, tuple[str, ...]]] = {}
    """Beside its options: params by dotted key, WINDOW, STRIDE or VALIDATED_AT."""
    not_deciding: ClassVar[tuple[str, ...]] = ()
    """Options that decide which numbers there are, and none of them."""

    @abstractmethod
    def measure(self, trained: Trained) -> Numbers:
        """Finite numbers, the same each time; raises DoesNotApply. Model and chance stay as they
        were, to the bit.
        """


def chosen(tree: Tree, names: list[str]) -> dict[str, Choice]:
    """The measures that `evaluate.measures` lists, by name. Raises UserError with the nearest
    spelling of one not there.
    """
    return {name: registry.choose(tree, "measures", name, "evaluate.measures") for name in names}


def take(measures: Mapping[str, Choice], trained: Trained) -> tuple[Numbers, list[str]]:
    """Each measure's numbers under its name, and a line for each that was left out."""
    taken: Numbers = {}
    left_out: list[str] = []
    for name, choice in measures.items():
        try:
            numbers = choice.build().measure(trained)
            if wrong := [key for key, value in flat(numbers) if not math.isfinite(value)]:
                raise DoesNotApply(f"{wrong[0]} is no finite number")
            taken[name] = numbers
        except DoesNotApply as reason:
            left_out.append(f"{name}: {reason}")
    return taken, left_out


def about(measures: Mapping[str, Choice], trained: Trained) -> dict[str, Any]:
    """What is to be known before runs are compared by each measure's numbers, as plain values for
    JSON (see `About`).
    """
    return {
        name: _about(choice, trained).model_dump(mode="json") for name, choice in measures.items()
    }


def _about(choice: Choice, trained: Trained) -> About:
    part: type[Measure] = choice.part
    values = {
        WINDOW: trained.model.context,
        STRIDE: trained.stride,
        VALIDATED_AT: _validated_at(trained),
    }
    return About(
        less_is_better=part.less_is_better,
        more_is_better=part.more_is_better,
        across_tokenizers=part.across_tokenizers,
        facts=part.facts,
        decided_by={
            pattern: {key: values.get(key) for key in keys}
            for pattern, keys in part.decided_by.items()
        },
        options={
            key: value
            for key, value in choice.options.model_dump().items()
            if key not in part.not_deciding
        },
    )


def _validated_at(trained: Trained) -> list[float] | None:
    tokens = [float(row["tokens"]) for row in trained.log if "validation_nats" in row]
    return [tokens[0], tokens[-1], float(len(tokens))] if tokens else None


def flat(numbers: Numbers, above: str = "") -> Iterator[tuple[str, float]]:
    """Every number with the names that lead to it."""
    for name, value in numbers.items():
        if isinstance(value, dict):
            yield from flat(value, f"{above}{name}.")
        else:
            yield f"{above}{name}", float(value)


def evenly(first: int, last: int, count: int) -> list[int]:
    """At most `count` whole numbers from `first` to `last`, both included, spread evenly; none
    twice.
    """
    return np.unique(np.linspace(first, last, count).astype(np.int64)).tolist()
