"""How much of what a model writes it has copied: n-grams that stand in the training text, and the
longest copy.

After McCoy et al. 2023, "How much do language models copy from their training data?": a share means
little alone, since people repeat phrases too; so held-out text is searched for in the same way.
"""

from itertools import accumulate

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from lmlab.core.params import Params
from lmlab.evaluation.measures.base import DoesNotApply, Measure, Numbers, Trained
from lmlab.model import generation

Integers = NDArray[np.int64]


class Options(Params):
    """Options of the measure."""

    lengths: list[int] = Field(min_length=1)
    texts: int = Field(ge=1)
    tokens: int = Field(ge=1)
    temperature: float = Field(ge=0)
    seed: int = Field(ge=0)
    train_megacharacters: float = Field(gt=0)


class Novelty(Measure):
    """How much of `generated` text, and of as much of `validation`, stands in the training text.

    Of each, `copied`: for every length n in characters the share of n-grams that occur there; and
    `longest_copy`: the length of the longest piece that does.

    `texts` texts of `tokens` tokens are drawn from nothing; where one ends another begins. As many
    characters are taken from validation, in pieces of the same lengths spread evenly; where it is
    shorter than that, only as much of what was drawn counts. At most `train_megacharacters` of the
    training text are searched, from its start (`train_characters`): what stands further on passes
    for new. Less copying is not better by itself: a model that has learned nothing copies least.
    Shares are of characters and compare across tokenizers; the longest copy grows with how much
    text the tokens are.
    """

    across_tokenizers = ("generated.copied.*",)
    facts = ("validation.*", "characters", "train_characters")
    not_deciding = ("lengths",)

    def __init__(self, options: Options) -> None:
        self.options = options

    def measure(self, trained: Trained) -> Numbers:
        options = self.options
        train = trained.text("train", int(options.train_megacharacters * 1e6))
        held_out = "".join(trained.text("validation", int(options.train_megacharacters * 1e6)))
        written = self._written(trained)
        shorter = min(1.0, len(held_out) / max(1, sum(map(len, written))))
        generated = [text[: int(len(text) * shorter)] for text in written]
        shortest = min(options.lengths)
        if max(map(len, generated), default=0) < shortest:
            raise DoesNotApply(
                f"the texts drawn, or what is read of validation, have no {shortest} characters"
                " on end (the options tokens,"
                " train_megacharacters and lengths)"
            )
        wanted = {
            "generated": generated,
            "validation": _pieces(held_out, [len(text) for text in generated]),
        }
        numbers: Numbers = {
            name: _copied(texts, train, options.lengths) for name, texts in wanted.items()
        }
        return {
            **numbers,
            "characters": sum(map(len, generated)),
            "train_characters": sum(map(len, train)),
        }

    def _written(self, trained: Trained) -> list[str]:
        """What the model writes, a text for each document it begins."""
        options, document = self.options, trained.shards.bos
        rows = generation.sample_rows(
            trained.model,
            options.texts,
            document,
            options.tokens,
            options.temperature,
            options.seed,
        ).numpy()
        ends = [np.flatnonzero(row == document) for row in rows]
        pieces = [
            piece for row, places in zip(rows, ends, strict=True) for piece in np.split(row, places)
        ]
        texts = (
            trained.tokenizer.decode(piece.astype(trained.shards.ids_type)) for piece in pieces
        )
        return [text for text in texts if text]


def _pieces(text: str, lengths: list[int]) -> list[str]:
    """Pieces of these lengths in order, with what is left over spread evenly between them."""
    gap = (len(text) - sum(lengths)) / max(1, len(lengths))
    starts = [
        int(place + number * gap)
        for number, place in enumerate(accumulate(lengths[:-1], initial=0))
    ]
    return [text[start : start + length] for start, length in zip(starts, lengths, strict=True)]


def _copied(texts: list[str], train: list[str], lengths: list[int]) -> Numbers:
    copies = Copies(texts, train)
    shares = {
        str(length): copies.share(length)
        for length in lengths
        if any(len(text) >= length for text in texts)
    }
    return {"copied": shares, "longest_copy": copies.longest()}


class Copies:
    """Which pieces of some texts occur in others, exactly; in memory of a few times the others'
    size.

    Short pieces are compared as numbers (their characters are the digits). Of longer ones, every
    place in the others gets the rank of the piece of 1, 2, 4, ... such lengths that begins there
    among the texts' own, or -1 if no text has it; two of those, overlapping, decide any length up
    to twice theirs (the doubling by which suffix arrays are built, Karp, Miller & Rosenberg 1972).
    """

    def __init__(self, texts: list[str], others: list[str]) -> None:
        own, theirs = _points("".join(texts)), _points("\0".join(others))
        known, ids = np.unique(own, return_inverse=True)
        self._texts = ids.astype(np.int64) + 1
        place = np.minimum(np.searchsorted(known, theirs), max(0, len(known) - 1))
        self._others = (
            np.where(known[place] == theirs, place + 1, 0)
            if len(known)
            else np.zeros(len(theirs), np.int64)
        )
        self._base = len(known) + 1  # 0 stands for characters that the texts do not have
        self._room = np.concatenate(
            [np.arange(len(text), 0, -1) for text in texts] or [np.zeros(0, np.int64)]
        )
        self._word = 1
        while self._base ** (self._word + 1) < 2**62:
            self._word += 1
        self._ranks: list[tuple[Integers, Integers]] = []

    def share(self, length: int) -> float:
        """Of the texts' pieces of this length, how many occur in the others; there must be one."""
        return float(self._found(length).mean())

    def longest(self) -> int:
        """The length of the longest piece that does."""
        most = int(self._room.max(initial=0))
        good, bad = 0, self._word
        while bad <= most and self._found(bad).any():
            good, bad = bad, 2 * bad
        bad = min(bad, most + 1)
        while bad - good > 1:
            middle = (good + bad) // 2
            good, bad = (middle, bad) if self._found(middle).any() else (good, middle)
        return good

    def _found(self, length: int) -> NDArray[np.bool_]:
        """For each piece of this length in the texts, whether it occurs."""
        own, theirs = self._keys(length)
        known, ranks = np.unique(own, return_inverse=True)
        occurs = np.zeros(len(known), bool)
        place = _places(known, theirs)
        occurs[place[place >= 0]] = True
        return np.asarray(occurs[ranks][self._room[: len(own)] >= length])

    def _keys(self, length: int) -> tuple[Integers, Integers]:
        """A number for every place of the texts and of the others, equal where the pieces are;
        below 0: in no text.
        """
        if length <= self._word:
            return _digits(self._texts, length, self._base), _digits(
                self._others, length, self._base
            )
        level = ((length - 1) // self._word).bit_length() - 1
        while len(self._ranks) <= level:
            self._ranks.append(self._ranked(self._word << len(self._ranks)))
        shift = length - (self._word << level)
        texts, others = self._ranks[level]
        count = len(texts) + 1
        own, theirs = (
            ranks[: max(0, len(ranks) - shift)] * count + ranks[shift:] for ranks in (texts, others)
        )
        neither = (others[: len(theirs)] < 0) | (others[shift:] < 0)
        return own, np.where(neither, -1, theirs)

    def _ranked(self, length: int) -> tuple[Integers, Integers]:
        own, theirs = self._keys(length)
        known, ranks = np.unique(own, return_inverse=True)
        return ranks.astype(np.int64), _places(known, theirs)


def _places(known: Integers, numbers: Integers) -> Integers:
    """Where each number stands in `known`, ascending; -1 if it does not, or is below 0."""
    if not len(known):
        return np.full(len(numbers), -1)
    place = np.minimum(np.searchsorted(known, numbers), len(known) - 1)
    return np.where((numbers >= 0) & (known[place] == numbers), place, -1)


def _digits(codes: Integers, length: int, base: int) -> Integers:
    """The `length` codes from each place on as one number; below 0 where one of them is 0."""
    count = max(0, len(codes) - length + 1)
    number, missing = np.zeros(count, np.int64), np.zeros(count, bool)
    for place in range(length):
        some = codes[place : place + count]
        number = number * base + some
        missing |= some == 0
    return np.where(missing, -1, number)


def _points(text: str) -> NDArray[np.uint32]:
    return np.frombuffer(text.encode("utf-32-le", "surrogatepass"), dtype=np.uint32)
