"""Minimal pairs from the corpus itself: held-out sentences against the same with one thing wrong.

Both sides have the same number of characters, so that no preference for short texts helps. What is wrong is wrong by
construction, or the training text never has it; so it needs no annotation and works for any text in words.
"""

import re
from collections.abc import Callable, Iterator
from random import Random
from typing import NamedTuple

from pydantic import Field

from lmlab.corpora.grammar import rules
from lmlab.evaluation.pairs import accuracy, text_nats
from lmlab.measures.base import DoesNotApply, Measure, Numbers, Trained
from lmlab.params import Params

FEW = 10
"""Pairs: fewer of a kind are not worth a number."""
MOST_SENTENCES = 4000
MOST_CHARACTERS = 100
"""In a sentence."""
TRAIN_CHARACTERS = 4_000_000
"""Of the training text that is looked at."""

WORD = r"[A-Za-z]+(?:'[A-Za-z]+)?"
AGREEMENT = {
    "I": {"am": "is"},
    **{pronoun: {"is": "am", "was": "are", "has": "are"} for pronoun in ("he", "she", "it")},
    **{pronoun: {"are": "has"} for pronoun in ("we", "they")},
}
"""English pronouns with their verbs, and forms just as long that never follow them."""


class Options(Params):
    """Options of the measure."""

    pairs: int = Field(ge=1)
    seed: int = Field(ge=0)


class Pair(NamedTuple):
    """The texts of each side: one, or several whose costs are added."""

    good: tuple[str, ...]
    bad: tuple[str, ...]


class Text(NamedTuple):
    """What pairs are made from: held-out sentences in random order, the training text, and its words."""

    sentences: list[str]
    train: str
    words: set[str]


class MinimalPairs(Measure):
    """`accuracy` of each kind of pair, how often the right side costs less, and their `mean`; a tie scores one half.

    `by_length_alone` is what counting tokens would score, the fewer the better: one half over characters or bytes, more
    where a tokenizer spells what is wrong in more tokens than what is right. A kind with fewer than ten pairs is not
    there. `swapped_words`: two neighbours the other way round, as the training text never has them. `repeated_word`: a
    word in the place of its right neighbour, as the training text never has it. `misspelt_word`: two letters swapped that
    make no word of the training text. `misplaced_punctuation`: a comma or the like behind its space. `agreement`: English
    pronouns with a wrong form of to be, or of has. In the synthetic corpus `grammar`: `verb`, `verb_across_clause`: four
    sentences in two pairs whose verbs change places, so both sides have the same words.
    """

    more_is_better = ("mean", "accuracy.*")
    facts = ("by_length_alone", "pairs.*")

    def __init__(self, options: Options) -> None:
        self.options = options

    def measure(self, trained: Trained) -> Numbers:
        chance = Random(self.options.seed)
        train = "\n".join(trained.text("train", TRAIN_CHARACTERS))
        held_out = sentences(trained.text("validation", TRAIN_CHARACTERS))
        chance.shuffle(held_out)
        text = Text(held_out[:MOST_SENTENCES], train, set(re.findall(WORD, train)))
        makers = {**KINDS, **(GRAMMAR if trained.manifest.get("corpus") == "grammar" else {})}
        pairs = {name: self._drawn(make(text, chance)) for name, make in makers.items()}
        pairs = {name: of_kind for name, of_kind in pairs.items() if len(of_kind) >= FEW}
        if not pairs:
            raise DoesNotApply(f"validation gives no {FEW} pairs of any kind")
        costs = _Costs(trained, [text for of_kind in pairs.values() for pair in of_kind for text in pair.good + pair.bad])
        scores = {name: costs.accuracy(of_kind, costs.nats) for name, of_kind in pairs.items()}
        by_length = {name: costs.accuracy(of_kind, costs.tokens) for name, of_kind in pairs.items()}
        return {
            "mean": sum(scores.values()) / len(scores),
            "by_length_alone": sum(by_length.values()) / len(by_length),
            "accuracy": scores,
            "pairs": {name: len(of_kind) for name, of_kind in pairs.items()},
        }

    def _drawn(self, made: Iterator[Pair]) -> list[Pair]:
        """The first of them, none twice."""
        kept: dict[Pair, None] = {}
        for pair in made:
            kept[pair] = None
            if len(kept) == self.options.pairs:
                break
        return list(kept)


class _Costs:
    """What every text of the pairs costs, each read once."""

    def __init__(self, trained: Trained, texts: list[str]) -> None:
        once = list(dict.fromkeys(texts))
        nats, tokens = text_nats(trained.model, trained.tokenizer, once)
        self.nats: dict[str, float] = dict(zip(once, nats.tolist(), strict=True))
        self.tokens: dict[str, float] = dict(zip(once, map(float, tokens), strict=True))

    def accuracy(self, pairs: list[Pair], cost: dict[str, float]) -> float:
        good, bad = ([sum(cost[text] for text in side) for side in sides] for sides in zip(*pairs, strict=True))
        return accuracy(good, bad)


def sentences(texts: list[str]) -> list[str]:
    """Lines, or the sentences of longer ones, each once; the too long and those of fewer than three words are left out."""
    found = (piece.strip() for text in texts for piece in re.split(r"\n|(?<=[.!?]) +", text))
    return [one for one in dict.fromkeys(found) if len(one) <= MOST_CHARACTERS and one.count(" ") >= 2]


def _neighbours(text: Text, chance: Random) -> Iterator[tuple[str, re.Match[str]]]:
    """For each sentence, one pair of different small-letter words with a space between, anywhere in it."""
    for sentence in text.sentences:
        found = list(re.finditer(r"(?<![\w'])(?=([a-z]+) ([a-z]+)(?![\w']))", sentence))
        found = [match for match in found if match[1] != match[2]]
        if found:
            yield sentence, chance.choice(found)


def swapped_words(text: Text, chance: Random) -> Iterator[Pair]:
    """The king -> king the."""
    for sentence, match in _neighbours(text, chance):
        swapped = f"{match[2]} {match[1]}"
        if f" {swapped} " not in text.train:
            yield Pair((sentence,), (_put(sentence, match.start(), swapped),))


def repeated_word(text: Text, chance: Random) -> Iterator[Pair]:
    """The man -> the the."""
    for sentence in text.sentences:
        found = list(re.finditer(r"(?<![\w'])(?=([a-z]+) ([a-z]+)(?![\w']))", sentence))
        found = [match for match in found if match[1] != match[2] and len(match[1]) == len(match[2])]
        if found:
            match = chance.choice(found)
            repeated = f"{match[1]} {match[1]}"
            if f" {repeated} " not in text.train:
                yield Pair((sentence,), (_put(sentence, match.start(), repeated),))


def misspelt_word(text: Text, chance: Random) -> Iterator[Pair]:
    """King -> kign; the first letter stays."""
    for sentence in text.sentences:
        words = [match for match in re.finditer(r"(?<![\w'])[a-z]{4,}(?![\w'])", sentence) if match[0] in text.words]
        if words:
            match = chance.choice(words)
            word = match[0]
            at = chance.randrange(1, len(word) - 1)
            wrong = word[:at] + word[at + 1] + word[at] + word[at + 2 :]
            if wrong not in text.words and wrong != word:
                yield Pair((sentence,), (_put(sentence, match.start(), wrong),))


def misplaced_punctuation(text: Text, chance: Random) -> Iterator[Pair]:
    """Word, next -> word ,next."""
    for sentence in text.sentences:
        if found := list(re.finditer(r"(?<=[a-z])[,;:.!?] (?=[A-Za-z])", sentence)):
            match = chance.choice(found)
            yield Pair((sentence,), (_put(sentence, match.start(), match[0][::-1]),))


def agreement(text: Text, chance: Random) -> Iterator[Pair]:
    """I am -> I is."""
    for sentence in text.sentences:
        for match in re.finditer(r"(?<![\w'])(I|[Hh]e|[Ss]he|[Ii]t|[Ww]e|[Tt]hey) ([a-z]+)(?![\w'])", sentence):
            verbs = AGREEMENT[match[1] if match[1] == "I" else match[1].lower()]
            if match[2] in verbs:
                yield Pair((sentence,), (_put(sentence, match.start(2), verbs[match[2]]),))
                break


def _put(sentence: str, start: int, piece: str) -> str:
    return sentence[:start] + piece + sentence[start + len(piece) :]


def verb(text: Text, chance: Random) -> Iterator[Pair]:
    """The dog sleeps, the dogs sleep -> the dog sleep, the dogs sleeps."""
    yield from _verbs(chance, clause=False)


def verb_across_clause(text: Text, chance: Random) -> Iterator[Pair]:
    """The dog that sees the cats sleeps: the verb agrees with a noun further back, and not with the one beside it."""
    if " that " in text.train:
        yield from _verbs(chance, clause=True)


def _verbs(chance: Random, clause: bool) -> Iterator[Pair]:
    """Without end, drawn from the grammar's own words."""
    words = {symbol: [piece[0].strip() for _, piece in expansions] for symbol, expansions in rules(0.0).items()}
    nouns, verbs, acts = (
        list(zip(words[one], words[many], strict=True))
        for one, many in (("NOUN ", "NOUNS "), ("RESTS ", "REST "), ("ACTS ", "ACT "))
    )
    for _ in range(100 * len(nouns) ** 2):
        (dog, dogs), (cat, cats) = chance.choice(nouns), chance.choice(nouns)
        (sees, see), (sleeps, sleep) = chance.choice(acts), chance.choice(verbs)
        one = f"the {dog} that {sees} the {cats}" if clause else f"the {dog}"
        many = f"the {dogs} that {see} the {cat}" if clause else f"the {dogs}"
        yield Pair((f"{one} {sleeps}.\n", f"{many} {sleep}.\n"), (f"{one} {sleep}.\n", f"{many} {sleeps}.\n"))


Maker = Callable[[Text, Random], Iterator[Pair]]
KINDS: dict[str, Maker] = {
    maker.__name__: maker for maker in (swapped_words, repeated_word, misspelt_word, misplaced_punctuation, agreement)
}
GRAMMAR: dict[str, Maker] = {maker.__name__: maker for maker in (verb, verb_across_clause)}
