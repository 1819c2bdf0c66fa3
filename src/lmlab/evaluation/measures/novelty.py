"""How much of its text a model has copied: n-grams also in the training text, and the longest copy.

After McCoy et al. 2023, "How much do language models copy from their training data?". A share says
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
    """How much of `generated` text, and of as much of `validation`, occurs in the training text.

    For each of the two, `copied` is the share of n-grams that occur there, for every length n in
    characters, and `longest_copy` the length of the longest piece that does.

    `texts` texts of `tokens` tokens are generated from nothing; a BOS token begins another text.
    The same number of characters is taken from validation, in pieces of the same lengths, evenly
    spaced; if validation is shorter, only as much of each generated text counts. At most
    `train_megacharacters` of the training text are searched, from its start (`train_characters`):
    a copy of later text is taken for new.

    Less copying is not better by itself: a model that has learned nothing copies least. Shares are
    of characters and compare across tokenizers; the longest copy grows with the amount of text that
    the tokens are.
    """

    across_tokenizers = ("generated.copied.*",)
    facts = ("validation.*", "characters", "train_characters")
    not_deciding = ("lengths",)

    def __init__(self, options: Options) -> None:
        self.options = options

    def measure(self, trained: Trained) -> Numbers:
        lengths = self.options.lengths
        characters = int(self.options.train_megacharacters * 1e6)
        train = trained.text("train", characters)
        held_out = "".join(trained.text("validation", characters))
        generated = _shortened(self._generated(trained), len(held_out))
        shortest = min(lengths)
        if max(map(len, generated), default=0) < shortest:
            raise DoesNotApply(
                f"no generated text, or too little of validation, has {shortest} characters in a"
                " row (the options tokens, train_megacharacters and lengths)"
            )
        validation = _pieces(held_out, [len(text) for text in generated])
        return {
            "generated": _copied(generated, train, lengths),
            "validation": _copied(validation, train, lengths),
            "characters": sum(map(len, generated)),
            "train_characters": sum(map(len, train)),
        }

    def _generated(self, trained: Trained) -> list[str]:
        """The model's texts, one for each document that it begins; none is empty."""
        options, bos = self.options, trained.shards.bos
        rows = generation.sample_rows(
            trained.model, options.texts, bos, options.tokens, options.temperature, options.seed
        ).numpy()
        texts = []
        for row in rows:
            for document in np.split(row, np.flatnonzero(row == bos)):
                texts.append(trained.tokenizer.decode(document.astype(trained.shards.ids_type)))
        return [text for text in texts if text]


def _shortened(texts: list[str], characters: int) -> list[str]:
    """The texts, all cut by the same factor where they have more characters than that together."""
    share = min(1.0, characters / max(1, sum(map(len, texts))))
    return [text[: int(len(text) * share)] for text in texts]


def _pieces(text: str, lengths: list[int]) -> list[str]:
    """Pieces of the given lengths, in order, with the rest of the text evenly between them."""
    gap = (len(text) - sum(lengths)) / max(1, len(lengths))
    pieces = []
    for number, before in enumerate(accumulate(lengths[:-1], initial=0)):
        start = int(before + number * gap)
        pieces.append(text[start : start + lengths[number]])
    return pieces


def _copied(texts: list[str], train: list[str], lengths: list[int]) -> Numbers:
    """The share of n-grams of each length that occur in `train`, and the longest copy."""
    copies = Copies(texts, train)
    longest_text = max(map(len, texts))
    shares = {str(length): copies.share(length) for length in lengths if length <= longest_text}
    return {"copied": shares, "longest_copy": copies.longest()}


class Copies:
    """Which pieces of some texts occur in other texts, exactly.

    It takes memory of a few times the size of the others. Characters are numbered; a short piece
    ("word") is compared as one number with its characters as digits. For longer pieces, every place
    in the others gets the rank, among the texts' own pieces of 1, 2, 4, ... words, of the piece
    that begins there, or -1 if no text has it. Two overlapping ranked pieces decide any length up
    to twice theirs (the doubling by which suffix arrays are built, Karp, Miller & Rosenberg 1972).
    """

    def __init__(self, texts: list[str], others: list[str]) -> None:
        text_points = _code_points("".join(texts))
        other_points = _code_points("\0".join(others))
        alphabet, numbers = np.unique(text_points, return_inverse=True)
        # 0 stands for characters that the texts do not have
        self._texts = numbers.astype(np.int64) + 1
        self._others = _places(alphabet, other_points) + 1
        self._base = len(alphabet) + 1
        # how many characters of its text are left at each place
        left = [np.arange(len(text), 0, -1) for text in texts]
        self._left = np.concatenate([*left, np.zeros(0, np.int64)])
        self._word = 1
        while self._base ** (self._word + 1) < 2**62:
            self._word += 1
        self._ranks: list[tuple[Integers, Integers]] = []

    def share(self, length: int) -> float:
        """The share of the texts' pieces of this length that occur in the others.

        There must be such a piece.
        """
        return float(self._occurs(length).mean())

    def longest(self) -> int:
        """The length of the longest piece of the texts that occurs in the others."""
        longest_text = int(self._left.max(initial=0))
        occurring, absent = 0, self._word
        while absent <= longest_text and self._occurs(absent).any():
            occurring, absent = absent, 2 * absent
        absent = min(absent, longest_text + 1)
        while absent - occurring > 1:
            middle = (occurring + absent) // 2
            if self._occurs(middle).any():
                occurring = middle
            else:
                absent = middle
        return occurring

    def _occurs(self, length: int) -> NDArray[np.bool_]:
        """For each piece of this length in the texts, whether it occurs in the others."""
        text_keys, other_keys = self._keys(length)
        distinct, numbers = np.unique(text_keys, return_inverse=True)
        occurs = np.zeros(len(distinct), bool)
        places = _places(distinct, other_keys)
        occurs[places[places >= 0]] = True
        within_a_text = self._left[: len(text_keys)] >= length
        return np.asarray(occurs[numbers][within_a_text])

    def _keys(self, length: int) -> tuple[Integers, Integers]:
        """A number for the piece at each place of the texts and of the others.

        Numbers are equal where pieces are. A piece that no text has is below 0.
        """
        if length <= self._word:
            text_keys = _as_number(self._texts, length, self._base)
            return text_keys, _as_number(self._others, length, self._base)
        level = ((length - 1) // self._word).bit_length() - 1
        while len(self._ranks) <= level:
            self._ranks.append(self._ranked(self._word << len(self._ranks)))
        shift = length - (self._word << level)
        text_ranks, other_ranks = self._ranks[level]
        text_keys = _pair_keys(text_ranks, shift, len(text_ranks) + 1)
        return text_keys, _pair_keys(other_ranks, shift, len(text_ranks) + 1)

    def _ranked(self, length: int) -> tuple[Integers, Integers]:
        """The rank of the piece at each place of the texts and of the others."""
        text_keys, other_keys = self._keys(length)
        distinct, ranks = np.unique(text_keys, return_inverse=True)
        return ranks.astype(np.int64), _places(distinct, other_keys)


def _pair_keys(ranks: Integers, shift: int, base: int) -> Integers:
    """The ranks at each place and `shift` further on, as one number; below 0 where one is."""
    first, second = ranks[: max(0, len(ranks) - shift)], ranks[shift:]
    absent = (first < 0) | (second < 0)
    return np.where(absent, -1, first * base + second)


def _places(known: NDArray[np.integer], numbers: NDArray[np.integer]) -> Integers:
    """The index of each number in `known`, which is ascending; -1 if it is not there or below 0."""
    if not len(known):
        return np.full(len(numbers), -1)
    place = np.minimum(np.searchsorted(known, numbers), len(known) - 1)
    return np.where((numbers >= 0) & (known[place] == numbers), place, -1)


def _as_number(digits: Integers, length: int, base: int) -> Integers:
    """The `length` digits from each place on as one number; below 0 where one of them is 0."""
    count = max(0, len(digits) - length + 1)
    number, has_zero = np.zeros(count, np.int64), np.zeros(count, bool)
    for offset in range(length):
        digit = digits[offset : offset + count]
        number = number * base + digit
        has_zero |= digit == 0
    return np.where(has_zero, -1, number)


def _code_points(text: str) -> NDArray[np.uint32]:
    return np.frombuffer(text.encode("utf-32-le", "surrogatepass"), dtype=np.uint32)
