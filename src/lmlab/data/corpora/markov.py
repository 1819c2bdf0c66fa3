"""A Markov source of chosen order: random letters whose exact entropy is known, so learning has a
measured floor.

Shannon (1948): the entropy rate is the entropy of the next letter given its state, averaged over
the distribution of the states.
"""

from collections.abc import Iterator
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, model_validator

from lmlab.core.params import Params
from lmlab.data.corpora.base import Corpus, Document

ALPHABET = "abcdefghijklmnopqrstuvwxyz"
MOST_STATES = 200_000
SETTLING_STEPS = 1_000
SETTLED = 1e-13
"""Summed over the states, how little a step changes a distribution that counts as stationary."""


class Options(Params):
    """Options of the source."""

    order: int = Field(ge=0, le=17)
    letters: int = Field(ge=2, le=len(ALPHABET))
    concentration: float = Field(gt=0)
    documents: int = Field(ge=1)
    characters: int = Field(ge=1)
    seed: int = Field(ge=0)

    @model_validator(mode="after")
    def _fits(self) -> "Options":
        if self.letters**self.order > MOST_STATES:
            raise ValueError(
                f"letters ** order is {self.letters**self.order:,} states; at most"
                f" {MOST_STATES:,} are kept"
            )
        if self.characters < self.order:
            raise ValueError(f"characters should be at least order ({self.order})")
        return self


class Markov(Corpus):
    """Documents of equal length; each starts in a state drawn from `start`."""

    licence = "none needed: generated"

    def __init__(self, options: Options) -> None:
        self.options = options
        self.source = (
            f"Markov source of order {options.order} over {options.letters} letters,"
            f" seed {options.seed}"
        )

    @cached_property
    def transitions(self) -> NDArray[np.float64]:
        """P(next letter | state), shape (letters ** order, letters), rows drawn from a symmetric
        Dirichlet.
        """
        options = self.options
        rng = np.random.default_rng([options.seed, 0])
        states = options.letters**options.order
        return rng.dirichlet(np.full(options.letters, options.concentration), size=states)

    @cached_property
    def start(self) -> NDArray[np.float64]:
        """The distribution of a document's first state, shape (letters ** order,): stationary, or
        nearly.

        Power iteration; a source that hardly ever leaves some states would take too long to settle
        altogether.
        """
        share = np.full(len(self.transitions), 1 / len(self.transitions))
        for _ in range(SETTLING_STEPS):
            after = self.step(share)
            if np.abs(after - share).sum() < SETTLED:
                break
            share = 0.5 * (after + share)  # the average cannot oscillate in a periodic chain
        return share / share.sum()

    def step(self, share: NDArray[np.float64]) -> NDArray[np.float64]:
        """The distribution over states one letter after `share`, both of shape (letters **
        order,).
        """
        if len(share) == 1:
            return share
        # a state's letters, then one more: (a, b) -> (b, c), so the first letter is summed away
        flow = share[:, None] * self.transitions
        return np.asarray(flow.reshape(self.options.letters, len(share)).sum(axis=0))

    def documents(self) -> Iterator[Document]:
        options = self.options
        rng = np.random.default_rng([options.seed, 1])
        states = len(self.transitions)
        state = rng.choice(states, size=options.documents, p=self.start)
        text = np.empty((options.documents, options.characters), dtype=np.uint8)
        for place in range(options.order):
            text[:, place] = (
                state // options.letters ** (options.order - 1 - place) % options.letters
            )
        cumulative = self.transitions.cumsum(axis=1)
        for place in range(options.order, options.characters):
            drawn = rng.random(options.documents)[:, None]
            letter = np.minimum((cumulative[state] <= drawn).sum(axis=1), options.letters - 1)
            text[:, place] = letter
            state = (state * options.letters + letter) % states
        letters = np.frombuffer(ALPHABET.encode(), dtype=np.uint8)
        for number, row in enumerate(letters[text]):
            yield Document(f"markov-{number}", [row.tobytes().decode("ascii")])

    def facts(self) -> dict[str, Any]:
        return {"entropy_bits_per_byte": self.entropy()}

    def entropy(self) -> float:
        """Exact expected bits per character of a document: of its first state, then of each letter
        given its state.
        """
        of_state = _entropy(self.transitions)
        share = self.start
        bits = float(_entropy(share[None])[0])
        for left in range(self.options.characters - self.options.order, 0, -1):
            after = self.step(share)
            if np.abs(after - share).sum() < SETTLED:
                bits += left * float(share @ of_state)
                break
            bits += float(share @ of_state)
            share = after
        return bits / self.options.characters


def _entropy(rows: NDArray[np.float64]) -> NDArray[np.float64]:
    """Entropy in bits of each row of probabilities."""
    logs = np.log2(rows, out=np.zeros_like(rows), where=rows > 0)
    return np.asarray(-(rows * logs).sum(axis=1))
