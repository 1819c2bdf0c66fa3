"""A Markov source of a chosen order: random letters whose exact entropy is the floor of any loss.

The entropy rate is the entropy of the next letter given the state, averaged over the states'
distribution p: sum over s of p(s) H(letter | s) (Shannon 1948).
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
"""A distribution is stationary if a step changes it by less than this, summed over the states."""


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
    """Documents of equal length, each beginning in a state drawn from `start`."""

    licence = "none needed: generated"

    def __init__(self, options: Options) -> None:
        self.options = options
        self.source = (
            f"Markov source of order {options.order} over {options.letters} letters,"
            f" seed {options.seed}"
        )

    @cached_property
    def transitions(self) -> NDArray[np.float64]:
        """P(next letter | state), shape (states, letters), rows drawn from a symmetric Dirichlet.

        A state is the last `order` letters, so there are letters ** order.
        """
        options = self.options
        rng = np.random.default_rng([options.seed, 0])
        states = options.letters**options.order
        return rng.dirichlet(np.full(options.letters, options.concentration), size=states)

    @cached_property
    def start(self) -> NDArray[np.float64]:
        """The distribution of a document's first state, shape (states,): the stationary one, by
        power iteration.

        It is approximate where the source hardly ever leaves some states, which would take too many
        steps.
        """
        states = len(self.transitions)
        distribution = np.full(states, 1 / states)
        for _ in range(SETTLING_STEPS):
            following = self.step(distribution)
            if np.abs(following - distribution).sum() < SETTLED:
                break
            # unlike the step itself, the average converges for a periodic chain too
            distribution = 0.5 * (following + distribution)
        return distribution / distribution.sum()

    def step(self, distribution: NDArray[np.float64]) -> NDArray[np.float64]:
        """The distribution over states one letter later; shape (states,), as the argument."""
        states = len(distribution)
        if states == 1:
            return distribution
        # a letter c takes the state (a, b) to (b, c), so the first letter is summed over
        joint = distribution[:, None] * self.transitions
        return np.asarray(joint.reshape(self.options.letters, states).sum(axis=0))

    def documents(self) -> Iterator[Document]:
        options = self.options
        rng = np.random.default_rng([options.seed, 1])
        states = len(self.transitions)
        state = rng.choice(states, size=options.documents, p=self.start)
        text = np.empty((options.documents, options.characters), dtype=np.uint8)
        for position in range(options.order):
            place_value = options.letters ** (options.order - 1 - position)
            text[:, position] = state // place_value % options.letters
        cumulative = self.transitions.cumsum(axis=1)
        for position in range(options.order, options.characters):
            uniform = rng.random(options.documents)[:, None]
            letter = (cumulative[state] <= uniform).sum(axis=1)
            letter = np.minimum(letter, options.letters - 1)  # cumsum may end just below 1
            text[:, position] = letter
            state = (state * options.letters + letter) % states
        letters = np.frombuffer(ALPHABET.encode(), dtype=np.uint8)
        for number, row in enumerate(letters[text]):
            yield Document(f"markov-{number}", [row.tobytes().decode("ascii")])

    def facts(self) -> dict[str, Any]:
        return {"entropy_bits_per_byte": self.entropy()}

    def entropy(self) -> float:
        """The exact expected bits per character of a document.

        These are the entropy of its first state plus that of each further letter given its state.
        """
        state_entropies = _entropy(self.transitions)
        distribution = self.start
        bits = float(_entropy(distribution[None])[0])
        for remaining in range(self.options.characters - self.options.order, 0, -1):
            following = self.step(distribution)
            letter_bits = float(distribution @ state_entropies)
            if np.abs(following - distribution).sum() < SETTLED:
                bits += remaining * letter_bits
                break
            bits += letter_bits
            distribution = following
        return bits / self.options.characters


def _entropy(rows: NDArray[np.float64]) -> NDArray[np.float64]:
    """The entropy in bits of each row of probabilities, shape (rows,)."""
    logs = np.log2(rows, out=np.zeros_like(rows), where=rows > 0)
    return np.asarray(-(rows * logs).sum(axis=1))
