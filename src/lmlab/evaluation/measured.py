"""The record of an evaluated run, which becomes results/measures.json."""

from dataclasses import asdict, dataclass
from typing import Any

from lmlab.evaluation.about import About
from lmlab.evaluation.measures.base import Numbers
from lmlab.training.status import DIVERGED, FINISHED


@dataclass(frozen=True)
class Divergence:
    """Where and why a run diverged."""

    step: int
    """The step that could not be taken, counted from 1."""
    reason: str


@dataclass(frozen=True)
class ScoredText:
    """Which text was scored, so that results say for themselves whether they share it."""

    corpus: str
    split: str
    sha256: str


@dataclass(frozen=True)
class Facts:
    """What is known of a run before anything is measured."""

    window: int
    """Tokens in a scoring window."""
    stride: int
    """Tokens between the starts of two windows."""
    parameters: int
    tokens_seen: int
    """In training."""
    training_bits: int
    """Of the numbers in training's matrix products."""
    weights_sha256: str
    environment: dict[str, str]
    text: ScoredText


@dataclass(frozen=True)
class StartScores:
    """The run that this one went on from: what it had cost, and what it was worth."""

    commit: str
    recipe: str
    """Of that run, but for seeds (`EarlierRun.recipe`)."""
    steps: int
    tokens: int
    bytes: int
    flops: int
    bits_per_byte_before: float | None
    """At its end, on its own validation split, in windows that do not overlap."""
    bits_per_byte_at_once: float | None
    """On this run's validation split, before its first step."""


@dataclass(frozen=True)
class SplitScores:
    """The model's scores on a whole split."""

    bits_per_byte: float
    nats_per_token: float
    perplexity: float
    accuracy: float
    calibration_error: float
    tokens: int
    bytes: int
    """Of the split's raw text."""


@dataclass(frozen=True)
class ReferenceScores:
    """Bits per byte of a split under each reference."""

    uniform: float
    unigram: float
    kneser_ney: float


@dataclass(frozen=True)
class Scores:
    """What was measured of a run that finished."""

    validation: SplitScores
    references: ReferenceScores
    kneser_ney_order: int
    train_tokens: int
    """Tokens that the references were fitted to."""
    source_entropy: float | None
    """Bits per byte of a synthetic corpus's source; None where it is not known."""
    measures: dict[str, Numbers]
    """The numbers of each measure, by its name."""
    left_out: list[str]
    """Each measure that did not apply, with the reason."""
    about: dict[str, About]
    """How each measure's numbers may be compared."""

    def as_json(self) -> dict[str, Any]:
        """Its part of measures.json."""
        references: dict[str, Any] = {
            "validation": asdict(self.references),
            "kneser_ney_order": self.kneser_ney_order,
            "train_tokens": self.train_tokens,
        }
        if self.source_entropy is not None:
            references["source_entropy"] = self.source_entropy
        return {
            "validation": asdict(self.validation),
            "references": references,
            **self.measures,
            "left_out": self.left_out,
            "about": {name: about.model_dump(mode="json") for name, about in self.about.items()},
        }


@dataclass(frozen=True)
class Measured:
    """An evaluated run: its facts with its scores, or with where it diverged."""

    facts: Facts
    outcome: Scores | Divergence
    start: StartScores | None = None
    """None of a run from scratch."""

    def as_json(self) -> dict[str, Any]:
        """The content of measures.json, how the run ended first of all."""
        facts = asdict(self.facts)
        if self.start:
            facts["start"] = asdict(self.start)
        if isinstance(self.outcome, Divergence):
            return {"status": DIVERGED, "diverged": asdict(self.outcome), **facts}
        return {"status": FINISHED, **facts, **self.outcome.as_json()}
