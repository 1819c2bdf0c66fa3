"""A small probabilistic context-free grammar of English-like sentences with a known exact entropy.

Verbs agree with their nouns across relative clauses of any depth ("the dog that sees the cats
sleeps"), so long-range dependencies must be learned too. Every sentence has a single derivation,
hence the entropy of the text is that of the derivation: H(s) = entropy of the choice of a rule for
symbol s + expected sum of H over the symbols in its expansion, a linear system (Grenander 1976).
"""

from collections.abc import Iterator
from random import Random
from typing import Any

import numpy as np
from pydantic import Field

from lmlab.core.params import Params
from lmlab.data.corpora.base import Corpus, Document

Rules = dict[str, list[tuple[float, tuple[str, ...]]]]
"""Each symbol's expansions with their probabilities; an item that is no key is text."""


class Options(Params):
    """Options of the source."""

    documents: int = Field(ge=1)
    sentences: int = Field(ge=1)
    relative_clause: float = Field(ge=0, le=0.5)
    seed: int = Field(ge=0)


def rules(relative_clause: float) -> Rules:
    """The grammar, with the probability that a relative clause follows a noun."""
    nouns = ["dog", "cat", "king", "queen", "child", "bird", "friend", "teacher"]
    single = {"sleep": "sleeps", "run": "runs", "sing": "sings", "laugh": "laughs"}
    pairs = {"see": "sees", "love": "loves", "follow": "follows", "fear": "fears"}
    plain = 1 - relative_clause
    weight = 1 / len(nouns)
    plural = [noun[:-5] + "children" if noun.endswith("child") else noun + "s" for noun in nouns]
    grammar: Rules = {
        "TEXT": [(0.6, ("ONE ", "DOES ", ".\n")), (0.4, ("MANY ", "DO ", ".\n"))],
        "ONE ": [
            (plain, ("DET ", "NOUN ")),
            (relative_clause, ("DET ", "NOUN ", " that", "DOES ")),
        ],
        "MANY ": [
            (plain, ("DETS ", "NOUNS ")),
            (relative_clause, ("DETS ", "NOUNS ", " that", "DO ")),
        ],
        "ANY ": [(0.5, ("ONE ",)), (0.5, ("MANY ",))],
        "DOES ": [(0.6, ("RESTS ",)), (0.4, ("ACTS ", " ", "ANY "))],
        "DO ": [(0.6, ("REST ",)), (0.4, ("ACT ", " ", "ANY "))],
        "DET ": [(0.5, ("the ",)), (0.3, ("a ",)), (0.2, ("every ",))],
        "DETS ": [(0.6, ("the ",)), (0.25, ("some ",)), (0.15, ("all ",))],
        "NOUN ": [(weight, (noun,)) for noun in nouns],
        "NOUNS ": [(weight, (noun,)) for noun in plural],
        "RESTS ": [(0.25, (f" {verb}",)) for verb in single.values()],
        "REST ": [(0.25, (f" {verb}",)) for verb in single],
        "ACTS ": [(0.25, (f" {verb}",)) for verb in pairs.values()],
        "ACT ": [(0.25, (f" {verb}",)) for verb in pairs],
    }
    return grammar


class Grammar(Corpus):
    """Documents of independent sentences, one per line."""

    licence = "none needed: generated"

    def __init__(self, options: Options) -> None:
        self.options = options
        self.rules = rules(options.relative_clause)
        self.source = (
            f"probabilistic grammar, relative clauses {options.relative_clause}, seed"
            f" {options.seed}"
        )

    def documents(self) -> Iterator[Document]:
        rng = Random(self.options.seed)
        for number in range(self.options.documents):
            sentences = [self._expand(rng) for _ in range(self.options.sentences)]
            yield Document(f"grammar-{number}", ["".join(sentences)])

    def facts(self) -> dict[str, Any]:
        bits, characters = self.entropy()
        return {"entropy_bits_per_byte": bits / characters}

    def entropy(self) -> tuple[float, float]:
        """The exact expected bits and characters of one sentence.

        By symbol, (I - expected) @ totals = own.
        """
        index = {symbol: i for i, symbol in enumerate(self.rules)}
        size = len(index)
        expected = np.zeros((size, size))  # how often a symbol's expansion holds each symbol
        own = np.zeros((size, 2))  # bits of a symbol's choice of a rule, characters in the rule
        for symbol, expansions in self.rules.items():
            row = index[symbol]
            for probability, expansion in expansions:
                if probability > 0:
                    own[row, 0] -= probability * np.log2(probability)
                for item in expansion:
                    if item in index:
                        expected[row, index[item]] += probability
                    else:
                        own[row, 1] += probability * len(item)
        totals = np.linalg.solve(np.eye(size) - expected, own)
        bits, characters = totals[index["TEXT"]]
        return float(bits), float(characters)

    def _expand(self, rng: Random) -> str:
        """A random sentence."""
        text: list[str] = []
        pending = ["TEXT"]
        while pending:
            symbol = pending.pop()
            if symbol not in self.rules:
                text.append(symbol)
                continue
            weights = [probability for probability, _ in self.rules[symbol]]
            expansions = [expansion for _, expansion in self.rules[symbol]]
            pending += reversed(rng.choices(expansions, weights)[0])
        return "".join(text)
