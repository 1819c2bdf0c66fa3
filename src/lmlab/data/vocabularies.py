"""Two vocabularies beside each other: which token of one is which of the other."""

from functools import cached_property

from lmlab.data.tokenizers.base import Tokenizer, part_name


class Vocabularies:
    """Which token of a new vocabulary is which of an old one, and how the others are spelled."""

    def __init__(self, old: Tokenizer, new: Tokenizer) -> None:
        self.old, self.new = old, new

    @cached_property
    def kept(self) -> dict[int, int]:
        """The old id of each new token that the old vocabulary has: of the same bytes."""
        by_bytes: dict[bytes, int] = {}
        for token, piece in enumerate(self.old.token_bytes):
            by_bytes.setdefault(piece, token)
        kept = {
            token: by_bytes[piece]
            for token, piece in enumerate(self.new.token_bytes)
            if piece and piece in by_bytes
        }
        kept[self.new.bos] = self.old.bos
        if part_name(self.old) == part_name(self.new):
            # tokens that are no text, such as the one that precedes an unknown character's code
            pairs = zip(_without_text(self.new), _without_text(self.old), strict=False)
            kept |= dict(pairs)
        return kept

    @property
    def has_only_grown(self) -> bool:
        """Whether every old token is there under the same id."""
        return all(self.kept.get(token) == token for token in range(self.old.vocabulary_size))

    def spelling(self, token: int) -> list[int]:
        """A new token's bytes in old ids; empty where these cannot spell them."""
        if token in self.kept:
            return [self.kept[token]]
        piece = self.new.token_bytes[token]
        try:
            return [int(part) for part in self.old.encode(piece.decode("utf-8"))]
        except UnicodeDecodeError:
            if any(value not in self._of_bytes for value in piece):
                return []
            return [self._of_bytes[value] for value in piece]

    @cached_property
    def _of_bytes(self) -> dict[int, int]:
        """The old ids of single bytes."""
        pieces = enumerate(self.old.token_bytes)
        return {piece[0]: token for token, piece in pieces if len(piece) == 1}


def _without_text(tokenizer: Tokenizer) -> list[int]:
    """The ids without bytes, but for BOS."""
    pieces = enumerate(tokenizer.token_bytes)
    return [token for token, piece in pieces if not piece and token != tokenizer.bos]
