"""Text from a trained model on the screen: one sample, several, or a conversation."""

import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch

from lmlab.core.errors import UserError
from lmlab.core.files import sha256
from lmlab.data.tokenizers import base as tokenizers
from lmlab.data.tokenizers.base import Tokenizer
from lmlab.model import generation
from lmlab.model.models import base as models
from lmlab.model.models.base import LanguageModel
from lmlab.model.truncation import Truncation
from lmlab.training import status

ASKS = "> "


@dataclass(frozen=True)
class Wishes:
    """How a text is to go on."""

    tokens: int
    """At most."""
    temperature: float
    truncation: Truncation
    until: str = ""
    """A text before which it ends; empty for none."""


@dataclass(frozen=True)
class Voice:
    """A trained model with its tokenizer."""

    model: LanguageModel
    tokenizer: Tokenizer

    @classmethod
    def of(cls, model: Path, tokenizer: Path) -> "Voice":
        """As they lie in two folders. Raises UserError where one is missing or damaged, where they
        do not belong together, and where the model has diverged.
        """
        fitted = tokenizers.load(tokenizer / "tokenizer.json")
        trained, saved = models.load(model, torch.device("cpu"))
        if diverged := status.how_it_diverged(saved):
            raise UserError(
                f"{model} has nothing to say: its training {diverged}; {status.ADVICE}, then `dvc"
                " repro`"
            )
        if saved.tokenizer_sha256 != sha256(tokenizer / "tokenizer.json"):
            raise UserError(
                f"{model} was trained with another tokenizer than {tokenizer}; run `dvc repro`"
            )
        return cls(trained, fitted)

    def goes_on(self, text: str, wishes: Wishes, seed: int) -> Iterator[str]:
        """Pieces of what comes after a text."""
        pieces = generation.sample_text(
            self.model,
            self.tokenizer,
            text,
            wishes.tokens,
            wishes.temperature,
            seed,
            wishes.truncation,
        )
        return generation.up_to(pieces, wishes.until) if wishes.until else pieces


def show(voice: Voice, prompt: str, wishes: Wishes, seed: int, samples: int) -> None:
    """Print samples as they grow, each of a seed of its own, counted up from `seed`."""
    for number in range(samples):
        if samples > 1:
            heading = f"--- seed {seed + number}\n"
            sys.stdout.write(f"\n{heading}" if number else heading)
        sys.stdout.write(prompt)
        _print(voice.goes_on(prompt, wishes, seed + number))
        sys.stdout.write("\n")


def talk(voice: Voice, opening: str, wishes: Wishes, seed: int) -> None:
    """Read lines and print how the text goes on after each, until there is none.

    The model reads all that has been said, the opening first, as far as its context goes. Each
    answer has a seed of its own, counted up from `seed`.
    """
    said = opening
    while line := _typed():
        said += line
        answer = _print(voice.goes_on(said, wishes, seed))
        said += answer + "\n"
        sys.stdout.write("\n")
        seed += 1


def _typed() -> str:
    """The next line with its end; empty after the last one."""
    if sys.stdin.isatty():
        sys.stdout.write(ASKS)
        sys.stdout.flush()
    return printable(sys.stdin.readline())


def printable(text: str) -> str:
    """What was typed may be no text, and could not be printed then."""
    return text.encode("utf-8", "replace").decode("utf-8")


def _print(pieces: Iterator[str]) -> str:
    """Print a text as it grows; return it."""
    printed = []
    for piece in pieces:
        sys.stdout.write(piece)
        sys.stdout.flush()
        printed.append(piece)
    return "".join(printed)
