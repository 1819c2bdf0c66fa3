"""Minimal pairs from the corpus itself: held-out sentences against the same with one thing wrong.

Both sides have the same number of characters, so that no preference for short texts helps. What is
wrong is nowhere in the training text, all of which is looked through; so it needs no annotation and
works for any text in words.
"""

import re
from collections.abc import Callable, Collection, Iterator
from itertools import pairwise
from pathlib import Path
from random import Random
from typing import NamedTuple

from pydantic import Field

from lmlab.core.params import Params
from lmlab.data import documents
from lmlab.data.corpora.grammar import rules
from lmlab.evaluation.measures.base import DoesNotApply, Measure, Numbers, Trained
from lmlab.evaluation.pairs import accuracy, text_nats

FEW = 10
"""Pairs: fewer of a kind are not worth a number."""
MOST_SENTENCES = 4000
MOST_CHARACTERS = 100
"""In a sentence."""
CHARACTERS = 4_000_000
"""Of the held-out text that sentences are taken from, and of the training text that words are."""

WORD = r"[A-Za-z]+(?:'[A-Za-z]+)?"
NEIGHBOURS = r"(?<![\w'])(?=([a-z]+) ([a-z]+)(?![\w']))"
MISPLACED = r"(?<![a-z])[a-z]+ [,;:.!?](?=[a-z])"
AGREEMENT = {
    "I": {"am": "is"},
    **{pronoun: {"is": "am", "was": "are", "has": "are"} for pronoun in ("he", "she", "it")},
    **{pronoun: {"are": "has"} for pronoun in ("we", "they")},
}
"""English pronouns with their verbs, and forms just as long that do not follow them."""


class Options(Params):
    """Options of the measure."""

    pairs: int = Field(ge=1)
    seed: int = Field(ge=0)


class Pair(NamedTuple):
    """The texts of each side: one, or several whose costs are added."""

    good: tuple[str, ...]
    bad: tuple[str, ...]


class Candidate(NamedTuple):
    """A pair, if the training text has neither what is wrong nor any of the wrong texts."""

    pair: Pair
    wrong: str
    """The words that are wrong, in small letters with one space between; empty where whole
    sentences are.
    """

    def texts(self) -> list[str]:
        """What must not stand in the training text: wrong sentences, or those that make up a whole
        line.
        """
        return list(self.pair.bad) if self.wrong else [f"\n{line}" for line in self.pair.bad]


class Text(NamedTuple):
    """What pairs are made from: held-out sentences in random order, and words of the training
    text.
    """

    sentences: list[str]
    words: set[str]


class MinimalPairs(Measure):
    """`accuracy` of each kind of pair, how often the right side costs less, and their `mean`; a tie
    scores one half.

    `by_length_alone` is what counting tokens would score, the fewer the better: one half over
    characters or bytes, more where a tokenizer spells what is wrong in more tokens than what is
    right. A kind with fewer than ten pairs is not there. `swapped_words`: two neighbours the other
    way round. `repeated_word`: a word in the place of its right neighbour. `misspelt_word`: two
    letters swapped. `misplaced_punctuation`: a comma or the like behind its space. `agreement`:
    English pronouns with a wrong form of to be, or of has. In the synthetic corpus `grammar`:
    `verb`, `verb_across_clause`: four sentences in two pairs whose verbs change places, so both
    sides have the same words.

    What is wrong (these two words in this order, that spelling) stands nowhere in the training
    text, in small letters or capitals and whatever is around it, and neither does the sentence as a
    whole; of the last two kinds, as a line.
    """

    more_is_better = ("mean", "accuracy.*")
    facts = ("by_length_alone", "pairs.*")

    def __init__(self, options: Options) -> None:
        self.options = options

    def measure(self, trained: Trained) -> Numbers:
        pairs = self.pairs(trained)
        pairs = {name: of_kind for name, of_kind in pairs.items() if len(of_kind) >= FEW}
        if not pairs:
            raise DoesNotApply(
                f"validation gives no {FEW} pairs of any kind"
                + f" (the option pairs allows {self.options.pairs})" * (self.options.pairs < FEW)
            )
        costs = _Costs(
            trained,
            [
                text
                for of_kind in pairs.values()
                for pair in of_kind
                for text in pair.good + pair.bad
            ],
        )
        scores = {name: costs.accuracy(of_kind, costs.nats) for name, of_kind in pairs.items()}
        by_length = {name: costs.accuracy(of_kind, costs.tokens) for name, of_kind in pairs.items()}
        return {
            "mean": sum(scores.values()) / len(scores),
            "by_length_alone": sum(by_length.values()) / len(by_length),
            "accuracy": scores,
            "pairs": {name: len(of_kind) for name, of_kind in pairs.items()},
        }

    def pairs(self, trained: Trained) -> dict[str, list[Pair]]:
        """The pairs of each kind, at most `pairs` of them, none twice, and none that the training
        text speaks against.
        """
        rng = Random(self.options.seed)
        held_out = sentences(trained.text("validation", CHARACTERS))
        rng.shuffle(held_out)
        words = {
            word for text in trained.text("train", CHARACTERS) for word in re.findall(WORD, text)
        }
        text = Text(held_out[:MOST_SENTENCES], words)
        makers = {**KINDS, **(GRAMMAR if trained.manifest.corpus == "grammar" else {})}
        made = {name: list(dict.fromkeys(make(text, rng))) for name, make in makers.items()}
        train = trained.corpus / "train.parquet"
        standing = _standing_words(
            train, {one.wrong for of_kind in made.values() for one in of_kind} - {""}
        )
        made = {
            name: [one for one in of_kind if one.wrong not in standing]
            for name, of_kind in made.items()
        }
        return {
            name: [one.pair for one in of_kind]
            for name, of_kind in self._drawn(made, train).items()
        }

    def _drawn(self, made: dict[str, list[Candidate]], train: Path) -> dict[str, list[Candidate]]:
        """The first `pairs` of each kind of which no wrong text stands in `train`."""
        standing: set[str] = set()
        while True:
            left = {
                name: [one for one in of_kind if standing.isdisjoint(one.texts())][
                    : self.options.pairs
                ]
                for name, of_kind in made.items()
            }
            found = _standing(
                train,
                {text for of_kind in left.values() for one in of_kind for text in one.texts()},
            )
            if not found:
                return left
            standing |= found


def _windows(train: Path) -> Iterator[str]:
    """The training text in pieces that overlap by more than a wrong text has characters; a line end
    before each document.
    """
    rest = ""
    for _, part, text in documents.read_parts(train):
        window = rest + text if part else f"\n{text}"
        yield window
        rest = window[-2 * MOST_CHARACTERS :]


def _standing(train: Path, texts: Collection[str]) -> set[str]:
    """Those of some texts that stand in the training text."""
    found: set[str] = set()
    for window in _windows(train):
        found.update(text for text in texts if text in window)
    return found


def _standing_words(train: Path, wanted: set[str]) -> set[str]:
    """Those of some words, pairs of neighbours and words around punctuation that stand in the
    training text.
    """
    found: set[str] = set()
    for window in _windows(train):
        text = window.lower()
        words = [
            word.strip("'") for word in re.findall(r"([\w']+)|[^\w\s']", text)
        ]  # "" for each punctuation mark
        found |= wanted.intersection(words)
        found |= wanted.intersection(f"{one} {next_one}" for one, next_one in pairwise(words))
        found |= wanted.intersection(re.findall(MISPLACED, text))
    return found


class _Costs:
    """What every text of the pairs costs, each read once."""

    def __init__(self, trained: Trained, texts: list[str]) -> None:
        once = list(dict.fromkeys(texts))
        nats, tokens = text_nats(trained.model, trained.tokenizer, once)
        self.nats: dict[str, float] = dict(zip(once, nats.tolist(), strict=True))
        self.tokens: dict[str, float] = dict(zip(once, map(float, tokens), strict=True))

    def accuracy(self, pairs: list[Pair], cost: dict[str, float]) -> float:
        good, bad = (
            [sum(cost[text] for text in side) for side in sides]
            for sides in zip(*pairs, strict=True)
        )
        return accuracy(good, bad)


def sentences(texts: list[str]) -> list[str]:
    """Lines, or the sentences of longer ones, each once; the too long and those of fewer than three
    words are left out.
    """
    found = (piece.strip() for text in texts for piece in re.split(r"\n|(?<=[.!?]) +", text))
    return [
        one for one in dict.fromkeys(found) if len(one) <= MOST_CHARACTERS and one.count(" ") >= 2
    ]


def swapped_words(text: Text, rng: Random) -> Iterator[Candidate]:
    """The king -> king the."""
    for sentence in text.sentences:
        found = [match for match in re.finditer(NEIGHBOURS, sentence) if match[1] != match[2]]
        if found:
            match = rng.choice(found)
            yield _candidate(sentence, match.start(), f"{match[2]} {match[1]}")


def repeated_word(text: Text, rng: Random) -> Iterator[Candidate]:
    """The man -> the the."""
    for sentence in text.sentences:
        found = [match for match in re.finditer(NEIGHBOURS, sentence) if match[1] != match[2]]
        found = [match for match in found if len(match[1]) == len(match[2])]
        if found:
            match = rng.choice(found)
            yield _candidate(sentence, match.start(), f"{match[1]} {match[1]}")


def misspelt_word(text: Text, rng: Random) -> Iterator[Candidate]:
    """King -> kign; the first letter stays."""
    for sentence in text.sentences:
        words = [
            match
            for match in re.finditer(r"(?<![\w'])[a-z]{4,}(?![\w'])", sentence)
            if match[0] in text.words
        ]
        if words:
            match = rng.choice(words)
            word = match[0]
            at = rng.randrange(1, len(word) - 1)
            wrong = word[:at] + word[at + 1] + word[at] + word[at + 2 :]
            if wrong != word:
                yield _candidate(sentence, match.start(), wrong)


def misplaced_punctuation(text: Text, rng: Random) -> Iterator[Candidate]:
    """Word, next -> word ,next."""
    for sentence in text.sentences:
        if found := list(
            re.finditer(r"(?<![A-Za-z])([A-Za-z]*[a-z])([,;:.!?]) (?=[A-Za-z])", sentence)
        ):
            match = rng.choice(found)
            yield _candidate(sentence, match.start(), f"{match[1]} {match[2]}")


def agreement(text: Text, rng: Random) -> Iterator[Candidate]:
    """I am -> I is."""
    for sentence in text.sentences:
        for match in re.finditer(
            r"(?<![\w'])(I|[Hh]e|[Ss]he|[Ii]t|[Ww]e|[Tt]hey) ([a-z]+)(?![\w'])", sentence
        ):
            verbs = AGREEMENT[match[1] if match[1] == "I" else match[1].lower()]
            if match[2] in verbs:
                yield _candidate(sentence, match.start(), f"{match[1]} {verbs[match[2]]}")
                break


def _candidate(sentence: str, start: int, wrong: str) -> Candidate:
    """A sentence against the same with something wrong from `start` on."""
    spoilt = sentence[:start] + wrong + sentence[start + len(wrong) :]
    return Candidate(Pair((sentence,), (spoilt,)), wrong.lower())


def verb(text: Text, rng: Random) -> Iterator[Candidate]:
    """The dog sleeps, the dogs sleep -> the dog sleep, the dogs sleeps."""
    yield from _verbs(rng, clause=False)


def verb_across_clause(text: Text, rng: Random) -> Iterator[Candidate]:
    """The dog that sees the cats sleeps: the verb agrees with a noun further back, and not with the
    one beside it.
    """
    if "that" in text.words:
        yield from _verbs(rng, clause=True)


def _verbs(rng: Random, clause: bool) -> Iterator[Candidate]:
    """Many, some of them twice, drawn from the grammar's own words."""
    words = {
        symbol: [piece[0].strip() for _, piece in expansions]
        for symbol, expansions in rules(0.0).items()
    }
    nouns, verbs, acts = (
        list(zip(words[one], words[many], strict=True))
        for one, many in (("NOUN ", "NOUNS "), ("RESTS ", "REST "), ("ACTS ", "ACT "))
    )
    for _ in range(100 * len(nouns) ** 2):
        (dog, dogs), (cat, cats) = rng.choice(nouns), rng.choice(nouns)
        (sees, see), (sleeps, sleep) = rng.choice(acts), rng.choice(verbs)
        one = f"the {dog} that {sees} the {cats}" if clause else f"the {dog}"
        many = f"the {dogs} that {see} the {cat}" if clause else f"the {dogs}"
        pair = Pair(
            (f"{one} {sleeps}.\n", f"{many} {sleep}.\n"),
            (f"{one} {sleep}.\n", f"{many} {sleeps}.\n"),
        )
        yield Candidate(pair, "")


Maker = Callable[[Text, Random], Iterator[Candidate]]
KINDS: dict[str, Maker] = {
    maker.__name__: maker
    for maker in (swapped_words, repeated_word, misspelt_word, misplaced_punctuation, agreement)
}
GRAMMAR: dict[str, Maker] = {maker.__name__: maker for maker in (verb, verb_across_clause)}
