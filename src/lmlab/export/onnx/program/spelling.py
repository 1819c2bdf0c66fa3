"""Text to ids and back in plain Python: one class for each tokenizer.

A program that an export writes holds the source of the class that it needs and of what the class
derives from, so these use nothing but `re`. `saved` is what tokenizer.json and model.json hold.
"""

import re
from typing import Any


class Byte:
    """Ids are bytes."""

    def __init__(self, saved: dict[str, Any]) -> None:
        self.bos = saved["special"]["bos"]

    def encode(self, text: str) -> list[int]:
        return list(text.encode("utf-8", "surrogatepass"))

    def decode(self, ids: list[int]) -> str:
        return bytes(i for i in ids if i != self.bos).decode("utf-8", "replace")


class Character:
    """Ids are characters; any other is `unseen`, then its code point in digits, which are ids."""

    def __init__(self, saved: dict[str, Any]) -> None:
        self.bos, self.unseen = saved["special"]["bos"], saved["unseen"]
        self.characters = [*saved["characters"], "", "", *saved["later"]]
        self.ids = {character: i for i, character in enumerate(self.characters) if character}
        self.base = self.unseen + 1
        self.digits = next(count for count in range(1, 22) if self.base**count >= 0x110000)

    def encode(self, text: str) -> list[int]:
        places = [self.base**place for place in reversed(range(self.digits))]
        ids = []
        for character in text:
            ids.append(self.ids.get(character, self.unseen))
            if ids[-1] == self.unseen:
                ids += [ord(character) // place % self.base for place in places]
        return ids

    def decode(self, ids: list[int]) -> str:
        text = ""
        remaining = iter(i for i in ids if i != self.bos)
        for i in remaining:
            if i == self.unseen:
                digits = [digit for _, digit in zip(range(self.digits), remaining)]
                text += self.spelled(digits)
            else:
                text += self.characters[i]
        return re.sub("[\ud800-\udfff]", "\ufffd", text)

    def spelled(self, digits: list[int]) -> str:
        """The character whose code point has these digits."""
        point = sum(digit * self.base**place for place, digit in enumerate(reversed(digits)))
        complete = len(digits) == self.digits and max(digits) < self.base
        return chr(point) if complete and point < 0x110000 else "\ufffd"


class Pieces:
    """Ids are pieces of bytes, the 256 bytes among them, that do not cross pre-tokens."""

    def __init__(self, saved: dict[str, Any]) -> None:
        self.pieces = [piece.encode("latin-1") for piece in saved["pieces"]]
        self.ids = {piece: i for i, piece in enumerate(self.pieces) if piece}
        self.pretokens = re.compile(saved["pretokens"])

    def encode(self, text: str) -> list[int]:
        whole = re.sub("[\ud800-\udfff]", "\ufffd", text)
        words = [word.encode() for word in self.pretokens.findall(whole)]
        return [self.ids[piece] for word in words for piece in self.spell(word)]

    def decode(self, ids: list[int]) -> str:
        return b"".join(self.pieces[i] for i in ids).decode("utf-8", "replace")

    def spell(self, word: bytes) -> list[bytes]:
        """The pieces of a pre-token."""
        raise NotImplementedError


class Word(Pieces):
    """Ids are words; any other is spelled in bytes."""

    def spell(self, word: bytes) -> list[bytes]:
        return [word] if word in self.ids else [bytes([i]) for i in word]


class BPE(Pieces):
    """Ids are merged pairs: of neighbours, the pair that was learned first is merged first."""

    def spell(self, word: bytes) -> list[bytes]:
        pieces = [bytes([i]) for i in word]
        while len(pieces) > 1:
            pairs = [pieces[i] + pieces[i + 1] for i in range(len(pieces) - 1)]
            first = min(pairs, key=lambda pair: self.ids.get(pair, len(self.pieces)))
            if first not in self.ids:
                break
            place = pairs.index(first)
            pieces[place : place + 2] = [first]
        return pieces


class Unigram(Pieces):
    """Ids are the pieces with the highest sum of log probabilities (Viterbi)."""

    def __init__(self, saved: dict[str, Any]) -> None:
        super().__init__(saved)
        scores = saved["log_probabilities"]
        self.scores = {piece.encode("latin-1"): score for piece, score in scores.items()}
        self.longest = max(map(len, self.scores))

    def spell(self, word: bytes) -> list[bytes]:
        best: list[tuple[float, list[bytes]]] = [(0.0, [])]
        for end in range(1, len(word) + 1):
            best.append((float("-inf"), []))
            for start in range(max(0, end - self.longest), end):
                piece = word[start:end]
                score = best[start][0] + self.scores.get(piece, float("-inf"))
                if score > best[end][0]:
                    best[end] = (score, [*best[start][1], piece])
        return best[-1][1]
