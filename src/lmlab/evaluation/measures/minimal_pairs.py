"""Minimal pairs from the corpus itself: held-out sentences against the same with one error.

Both sides have the same number of characters, so a preference for short texts does not help. The
error occurs nowhere in the training text, all of which is searched. So no annotation is needed, and
any text in words will do.
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

FEWEST_PAIRS = 10
"""A kind with fewer pairs is left out."""
MOST_SENTENCES = 4000
MOST_CHARACTERS = 100
"""In a sentence."""
CHARACTERS = 4_000_000
"""Of the held-out text that sentences are taken from, and of the training text that words are taken
from.
"""

WORD = r"[A-Za-z]+(?:'[A-Za-z]+)?"
NEIGHBOURS = r"(?<![\w'])(?=([a-z]+) ([a-z]+)(?![\w']))"
LOWER_CASE_WORD = r"(?<![\w'])[a-z]{4,}(?![\w'])"
PUNCTUATED = r"(?<![A-Za-z])([A-Za-z]*[a-z])([,;:.!?]) (?=[A-Za-z])"
MISPLACED = r"(?<![a-z])[a-z]+ [,;:.!?](?=[a-z])"
PRONOUN_AND_VERB = r"(?<![\w'])(I|[Hh]e|[Ss]he|[Ii]t|[Ww]e|[Tt]hey) ([a-z]+)(?![\w'])"
AGREEMENT = {
    "i": {"am": "is"},
    "he": {"is": "am", "was": "are", "has": "are"},
    "she": {"is": "am", "was": "are", "has": "are"},
    "it": {"is": "am", "was": "are", "has": "are"},
    "we": {"are": "has"},
    "they": {"are": "has"},
}
"""English pronouns with their verbs, and for each a form of the same length that is wrong."""


class Options(Params):
    """Options of the measure."""

    pairs: int = Field(ge=1)
    seed: int = Field(ge=0)


class Pair(NamedTuple):
    """The texts of each side: one, or several whose nats are added."""

    good: tuple[str, ...]
    bad: tuple[str, ...]


class Candidate(NamedTuple):
    """A pair, provided that the training text has neither the error nor any of the bad texts."""

    pair: Pair
    error: str
    """The wrong words, in lower case with one space between; empty where the error is no sequence
    of words.
    """

    def bad_texts(self) -> list[str]:
        """What must not occur in the training text: bad sentences, or bad texts as whole lines."""
        return list(self.pair.bad) if self.error else [f"\n{line}" for line in self.pair.bad]


Candidates = dict[str, list[Candidate]]
"""Candidates by kind."""


class Text(NamedTuple):
    """What pairs are made from."""

    sentences: list[str]
    """Held out, in random order."""
    words: set[str]
    """Of the training text."""


class MinimalPairs(Measure):
    """`accuracy` of each kind of pair, how often the good side has fewer nats, and their `mean`.

    A tie scores one half. A kind with fewer than ten pairs is left out. `by_length_alone` is the
    score of counting tokens, the fewer the better: one half over characters or bytes, more where a
    tokenizer needs more tokens for the error than for the original.

    The kinds: `swapped_words`: two neighbours in the other order. `repeated_word`: a word in the
    place of its right neighbour. `misspelt_word`: two letters swapped. `misplaced_punctuation`: a
    comma or the like behind its space. `agreement`: English pronouns with a wrong form of to be, or
    of has. In the synthetic corpus `grammar`: `verb` and `verb_across_clause`: four sentences in
    two pairs whose verbs change places, so both sides have the same words.

    The error (these two words in this order, that spelling) occurs nowhere in the training text, in
    upper or lower case and whatever is around it, and neither does the sentence as a whole; for the
    last two kinds the sentence does not occur as a line.
    """

    more_is_better = ("mean", "accuracy.*")
    facts = ("by_length_alone", "pairs.*")

    def __init__(self, options: Options) -> None:
        self.options = options

    def measure(self, trained: Trained) -> Numbers:
        all_pairs = self.pairs(trained)
        pairs = {kind: pairs for kind, pairs in all_pairs.items() if len(pairs) >= FEWEST_PAIRS}
        if not pairs:
            reason = f"validation gives no {FEWEST_PAIRS} pairs of any kind"
            if self.options.pairs < FEWEST_PAIRS:
                reason += f" (the option pairs allows {self.options.pairs})"
            raise DoesNotApply(reason)
        lengths = _Lengths(trained, list(pairs.values()))
        by_model = {kind: lengths.accuracy_by_nats(pairs[kind]) for kind in pairs}
        by_length = {kind: lengths.accuracy_by_tokens(pairs[kind]) for kind in pairs}
        return {
            "mean": sum(by_model.values()) / len(by_model),
            "by_length_alone": sum(by_length.values()) / len(by_length),
            "accuracy": by_model,
            "pairs": {kind: len(pairs[kind]) for kind in pairs},
        }

    def pairs(self, trained: Trained) -> dict[str, list[Pair]]:
        """At most `pairs` different pairs of each kind.

        Those whose error or bad texts occur in the training text are left out.
        """
        rng = Random(self.options.seed)
        held_out = sentences(trained.text("validation", CHARACTERS))
        rng.shuffle(held_out)
        words: set[str] = set()
        for part in trained.text("train", CHARACTERS):
            words.update(re.findall(WORD, part))
        text = Text(held_out[:MOST_SENTENCES], words)

        makers = KINDS
        if trained.manifest.corpus == "grammar":
            makers = KINDS | GRAMMAR
        candidates = {kind: list(dict.fromkeys(make(text, rng))) for kind, make in makers.items()}
        train = trained.corpus / "train.parquet"
        candidates = self._without_bad_texts(_without_errors(candidates, train), train)
        return {kind: [c.pair for c in of_kind] for kind, of_kind in candidates.items()}

    def _without_bad_texts(self, candidates: Candidates, train: Path) -> Candidates:
        """The first `pairs` of each kind of which no bad text occurs in the training text."""
        occurring: set[str] = set()
        while True:
            first = {}
            for kind, of_kind in candidates.items():
                allowed = [c for c in of_kind if occurring.isdisjoint(c.bad_texts())]
                first[kind] = allowed[: self.options.pairs]
            bad_texts: set[str] = set()
            for of_kind in first.values():
                bad_texts.update(*(candidate.bad_texts() for candidate in of_kind))
            new = _occurring(bad_texts, train)
            if not new:
                return first
            occurring |= new


def _without_errors(candidates: Candidates, train: Path) -> Candidates:
    """The candidates whose error does not occur in the training text."""
    errors = {candidate.error for of_kind in candidates.values() for candidate in of_kind} - {""}
    occurring = _occurring_errors(errors, train)
    return {
        kind: [c for c in of_kind if c.error not in occurring]
        for kind, of_kind in candidates.items()
    }


def _train_windows(train: Path) -> Iterator[str]:
    """The training text in pieces that overlap by more than the characters of a bad text.

    A line end stands before each document.
    """
    overlap = ""
    for _, part, text in documents.read_parts(train):
        window = overlap + text if part else f"\n{text}"
        yield window
        overlap = window[-2 * MOST_CHARACTERS :]


def _occurring(texts: Collection[str], train: Path) -> set[str]:
    """Those of the texts that occur in the training text."""
    occurring: set[str] = set()
    for window in _train_windows(train):
        occurring.update(text for text in texts if text in window)
    return occurring


def _occurring_errors(errors: set[str], train: Path) -> set[str]:
    """Those of the errors (words, neighbours, words around punctuation) in the training text."""
    occurring: set[str] = set()
    for window in _train_windows(train):
        text = window.lower()
        # "" for each punctuation mark, so that words on both sides of it are no neighbours
        words = [word.strip("'") for word in re.findall(r"([\w']+)|[^\w\s']", text)]
        occurring |= errors.intersection(words)
        occurring |= errors.intersection(f"{left} {right}" for left, right in pairwise(words))
        occurring |= errors.intersection(re.findall(MISPLACED, text))
    return occurring


class _Lengths:
    """Nats and tokens of every text of the pairs, each scored once."""

    def __init__(self, trained: Trained, kinds: list[list[Pair]]) -> None:
        texts: dict[str, None] = {}
        for pairs in kinds:
            for pair in pairs:
                texts |= dict.fromkeys(pair.good + pair.bad)
        nats, tokens = text_nats(trained.model, trained.tokenizer, list(texts))
        self._nats: dict[str, float] = dict(zip(texts, nats.tolist(), strict=True))
        self._tokens: dict[str, float] = dict(zip(texts, map(float, tokens), strict=True))

    def accuracy_by_nats(self, pairs: list[Pair]) -> float:
        """How often the good side has fewer nats."""
        return _accuracy(pairs, self._nats)

    def accuracy_by_tokens(self, pairs: list[Pair]) -> float:
        """How often the good side has fewer tokens."""
        return _accuracy(pairs, self._tokens)


def _accuracy(pairs: list[Pair], length: dict[str, float]) -> float:
    good = [sum(length[text] for text in pair.good) for pair in pairs]
    bad = [sum(length[text] for text in pair.bad) for pair in pairs]
    return accuracy(good, bad)


def sentences(texts: list[str]) -> list[str]:
    """Lines, or the sentences of longer ones, each once.

    Sentences of more than MOST_CHARACTERS characters or fewer than three words are left out.
    """
    pieces: dict[str, None] = {}
    for text in texts:
        pieces |= dict.fromkeys(piece.strip() for piece in re.split(r"\n|(?<=[.!?]) +", text))
    return [piece for piece in pieces if len(piece) <= MOST_CHARACTERS and piece.count(" ") >= 2]


def swapped_words(text: Text, rng: Random) -> Iterator[Candidate]:
    """The king -> king the."""
    for sentence in text.sentences:
        matches = _different_neighbours(sentence)
        if matches:
            match = rng.choice(matches)
            yield _candidate(sentence, match.start(), f"{match[2]} {match[1]}")


def repeated_word(text: Text, rng: Random) -> Iterator[Candidate]:
    """The man -> the the."""
    for sentence in text.sentences:
        matches = _different_neighbours(sentence)
        matches = [match for match in matches if len(match[1]) == len(match[2])]
        if matches:
            match = rng.choice(matches)
            yield _candidate(sentence, match.start(), f"{match[1]} {match[1]}")


def _different_neighbours(sentence: str) -> list[re.Match[str]]:
    """Pairs of neighbouring words that are not the same word twice."""
    return [match for match in re.finditer(NEIGHBOURS, sentence) if match[1] != match[2]]


def misspelt_word(text: Text, rng: Random) -> Iterator[Candidate]:
    """King -> kign; the first letter stays."""
    for sentence in text.sentences:
        matches = [m for m in re.finditer(LOWER_CASE_WORD, sentence) if m[0] in text.words]
        if matches:
            match = rng.choice(matches)
            word = match[0]
            place = rng.randrange(1, len(word) - 1)
            misspelt = word[:place] + word[place + 1] + word[place] + word[place + 2 :]
            if misspelt != word:
                yield _candidate(sentence, match.start(), misspelt)


def misplaced_punctuation(text: Text, rng: Random) -> Iterator[Candidate]:
    """Word, next -> word ,next."""
    for sentence in text.sentences:
        matches = list(re.finditer(PUNCTUATED, sentence))
        if matches:
            match = rng.choice(matches)
            yield _candidate(sentence, match.start(), f"{match[1]} {match[2]}")


def agreement(text: Text, rng: Random) -> Iterator[Candidate]:
    """I am -> I is."""
    for sentence in text.sentences:
        for match in re.finditer(PRONOUN_AND_VERB, sentence):
            wrong_forms = AGREEMENT[match[1].lower()]
            if match[2] in wrong_forms:
                error = f"{match[1]} {wrong_forms[match[2]]}"
                yield _candidate(sentence, match.start(), error)
                break


def _candidate(sentence: str, start: int, error: str) -> Candidate:
    """A sentence against the same with an error of the same length from `start` on."""
    bad = sentence[:start] + error + sentence[start + len(error) :]
    return Candidate(Pair((sentence,), (bad,)), error.lower())


def verb(text: Text, rng: Random) -> Iterator[Candidate]:
    """The dog sleeps, the dogs sleep -> the dog sleep, the dogs sleeps."""
    yield from _verbs(rng, clause=False)


def verb_across_clause(text: Text, rng: Random) -> Iterator[Candidate]:
    """The dog that sees the cats sleeps -> the dog that sees the cats sleep.

    The verb agrees with a noun further back, not with the one next to it.
    """
    if "that" in text.words:
        yield from _verbs(rng, clause=True)


def _verbs(rng: Random, clause: bool) -> Iterator[Candidate]:
    """Many candidates, some of them repeated, from the words of the grammar's own rules."""
    words = {
        symbol: [piece[0].strip() for _, piece in expansions]
        for symbol, expansions in rules(0.0).items()
    }
    nouns = list(zip(words["NOUN "], words["NOUNS "], strict=True))
    verbs = list(zip(words["RESTS "], words["REST "], strict=True))
    acts = list(zip(words["ACTS "], words["ACT "], strict=True))
    for _ in range(100 * len(nouns) ** 2):
        dog, dogs = rng.choice(nouns)
        cat, cats = rng.choice(nouns)
        sees, see = rng.choice(acts)
        sleeps, sleep = rng.choice(verbs)
        singular = f"the {dog} that {sees} the {cats}" if clause else f"the {dog}"
        plural = f"the {dogs} that {see} the {cat}" if clause else f"the {dogs}"
        pair = Pair(
            good=(f"{singular} {sleeps}.\n", f"{plural} {sleep}.\n"),
            bad=(f"{singular} {sleep}.\n", f"{plural} {sleeps}.\n"),
        )
        yield Candidate(pair, "")


Maker = Callable[[Text, Random], Iterator[Candidate]]
KINDS: dict[str, Maker] = {
    maker.__name__: maker
    for maker in (swapped_words, repeated_word, misspelt_word, misplaced_punctuation, agreement)
}
GRAMMAR: dict[str, Maker] = {maker.__name__: maker for maker in (verb, verb_across_clause)}
"""Kinds for the synthetic corpus `grammar` alone."""
