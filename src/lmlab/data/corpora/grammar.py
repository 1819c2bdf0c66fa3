"""A small probabilistic grammar of English-like sentences whose exact entropy is known.

Verbs agree with their nouns across relative clauses of any depth ("the dog that sees the cats
sleeps"), so it also asks for memory. Every sentence has one derivation only, hence the entropy of
the text is that of the derivation: for each symbol, its rule's entropy plus that of what the rule
expands to, a system of linear equations (Grenander 1976).
"""

from collections.abc import Iterator
from random import Random
from typing import Any

import numpy as np
from pydantic import Field

from lmlab.core.params import Params
from lmlab.data.corpora.base import Corpus, Document

Rules = dict[str, list[tuple[float, tuple[str, ...]]]]
"""For each symbol, its expansions with their probabilities; what is no key is text."""


class Options(Params):
    """Options of the source."""

    documents: int = Field(ge=1)
    sentences: int = Field(ge=1)
    relative_clause: float = Field(ge=0, le=0.5)
    seed: int = Field(ge=0)


def rules(relative_clause: float) -> Rules:
    """The grammar; `relative_clause` is the probability that a noun is followed by a clause about
    it.
    """
    nouns = ["dog", "cat", "king", "queen", "child", "bird", "friend", "teacher"]
    single = {"sleep": "sleeps", "run": "runs", "sing": "sings", "laugh": "laughs"}
    pairs = {"see": "sees", "love": "loves", "follow": "follows", "fear": "fears"}
    plain, weight = 1 - relative_clause, 1 / len(nouns)
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
    """Documents of a number of independent sentences, one a line."""

    licence = "none needed: generated"

    def __init__(self, options: Options) -> None:
        self.options = options
        self.rules = rules(options.relative_clause)
        self.source = (
            f"probabilistic grammar, relative clauses {options.relative_clause}, seed"
            f" {options.seed}"
        )

    def documents(self) -> Iterator[Document]:
        chance = Random(self.options.seed)
        for number in range(self.options.documents):
            yield Document(
                f"grammar-{number}",
                ["".join(self._expand(chance) for _ in range(self.options.sentences))],
            )

    def facts(self) -> dict[str, Any]:
        bits, characters = self.entropy()
        return {"entropy_bits_per_byte": bits / characters}

    def entropy(self) -> tuple[float, float]:
        """Exact expected bits and characters of one sentence."""
        symbols = list(self.rules)
        index = {symbol: place for place, symbol in enumerate(symbols)}
        expected = np.zeros(
            (len(symbols), len(symbols))
        )  # how often a rule's expansion holds each symbol, on average
        own = np.zeros(
            (len(symbols), 2)
        )  # bits of choosing a rule, and characters it writes itself
        for symbol, expansions in self.rules.items():
            for chance, expansion in expansions:
                if chance > 0:
                    own[index[symbol], 0] -= chance * np.log2(chance)
                for item in expansion:
                    if item in index:
                        expected[index[symbol], index[item]] += chance
                    else:
                        own[index[symbol], 1] += chance * len(item)
        bits, characters = np.linalg.solve(np.eye(len(symbols)) - expected, own)[index["TEXT"]]
        return float(bits), float(characters)

    def _expand(self, chance: Random) -> str:
        text: list[str] = []
        pending = ["TEXT"]
        while pending:
            symbol = pending.pop()
            if symbol in self.rules:
                expansions = self.rules[symbol]
                weights = [weight for weight, _ in expansions]
                pending += reversed(chance.choices([items for _, items in expansions], weights)[0])
            else:
                text.append(symbol)
        return "".join(text)
