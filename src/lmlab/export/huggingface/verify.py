"""A written folder, loaded as its user will load it, against the lab's model and tokenizer."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from inspect import signature
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from unittest.mock import patch

import torch

from lmlab.core.errors import UserError
from lmlab.data.tokenizers.base import Tokenizer
from lmlab.data.tokenizers.character import Character
from lmlab.export.run import Run
from lmlab.export.scored import Scored, scored

TOLERANCE = 1e-4
"""The largest difference of logits, where these are at most 1, that is put down to rounding."""
CACHED = 48
"""Tokens that are also read one by one."""
MOST_CHARACTERS = 4_000_000
"""Of the corpus that both tokenizers encode."""


@dataclass(frozen=True)
class Agreement:
    """How far transformers and the lab agree."""

    largest_difference: float
    """Of logits."""
    largest_logit: float
    tokens: int
    """How many positions were compared."""
    bits_per_byte: tuple[float, float] | None
    """Of the lab and of transformers; None where there was no text."""
    characters: int
    """Of the corpus that both encoded to the same ids."""
    unknown: int
    """Characters of those that the exported tokenizer does not know."""

    def line(self) -> str:
        """What to tell of it."""
        parts = [
            f"logits (up to {self.largest_logit:.0f}) within {self.largest_difference:.1e} of the"
            f" lab's on {self.tokens:,} tokens"
        ]
        if self.bits_per_byte:
            lab, exported = self.bits_per_byte
            parts.append(f"{exported:.5f} bits per byte (the lab: {lab:.5f})")
        if self.characters:
            parts.append(f"the same ids on {self.characters:,} characters of the corpus")
        return "; ".join(parts)


def verify(folder: Path, run: Run, custom: bool) -> Agreement:
    """Load a folder with transformers and compare it with the run.

    Raises UserError where they differ by more than rounding.
    """
    with quiet():
        tokenizer, model = loaded(folder, custom)
        characters, unknown = _same_ids(tokenizer, run)
        text = scored(run)
        difference, largest, nats = _compared(model, run, text)
        difference = max(difference, _by_token(model, run, text))
    if not difference <= TOLERANCE * max(1.0, largest):
        raise UserError(
            f"not written: the exported model's logits differ by {difference:.2g} from the lab's,"
            f" whose largest is {largest:.2g}; `lmlab export onnx` is another way"
        )
    bits = (text.bits_per_byte(nats[0]), text.bits_per_byte(nats[1])) if text.is_text else None
    return Agreement(difference, largest, text.inputs.numel(), bits, characters, unknown)


def loaded(folder: Path, custom: bool) -> tuple[Any, Any]:
    """The tokenizer and the model in a folder, as transformers load them."""
    from transformers import AutoModelForCausalLM, AutoTokenizer, dynamic_module_utils

    with (
        TemporaryDirectory() as scratch,
        patch.object(dynamic_module_utils, "HF_MODULES_CACHE", scratch),
    ):  # code that is checked is not left in its user's own cache
        tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=custom)
        model: Any = AutoModelForCausalLM.from_pretrained(
            folder, trust_remote_code=custom, dtype=torch.float32
        )
    return tokenizer, model.eval()


@contextmanager
def quiet() -> Iterator[None]:
    """Transformers without its progress bars and advice."""
    from transformers.utils import logging as logs

    logging: Any = logs
    level, shows = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if shows:
            logging.enable_progress_bar()


@torch.no_grad()
def _compared(model: Any, run: Run, text: Scored) -> tuple[float, float, tuple[float, float]]:
    """The largest difference of logits, the largest logit, and the nats of both."""
    difference = largest = 0.0
    own_nats = other_nats = 0.0
    for inputs_BT, targets_BT in text.batches():
        own_BTV, other_BTV = run.model(inputs_BT), model(inputs_BT).logits
        difference = max(difference, float((own_BTV - other_BTV).abs().max()))
        largest = max(largest, float(own_BTV.abs().max()))
        own_nats += text.nats(own_BTV, targets_BT)
        other_nats += text.nats(other_BTV, targets_BT)
    return difference, largest, (own_nats, other_nats)


@torch.no_grad()
def _by_token(model: Any, run: Run, text: Scored) -> float:
    """The largest difference of logits where transformers read token by token, with their cache."""
    ids_BT = text.inputs[:1, :CACHED]
    own_BTV = run.model(ids_BT)
    cache, largest = None, 0.0
    for at in range(ids_BT.shape[1]):
        answer = model(ids_BT[:, at : at + 1], use_cache=True, **{_cache_name(model): cache})
        cache = getattr(answer, _cache_name(model), None)
        if cache is None:  # code of its own has none
            return 0.0
        largest = max(largest, float((own_BTV[:, at] - answer.logits[:, 0]).abs().max()))
    return largest


def _cache_name(model: Any) -> str:
    """What the model's library calls a KV cache; it was renamed."""
    return "cache" if "cache" in signature(model.forward).parameters else "past_key_values"


def _same_ids(tokenizer: Any, run: Run) -> tuple[int, int]:
    """How many characters of the corpus both encoded to the same ids, and how many were left out
    because tokenizer.json does not know them.

    Raises UserError where ids differ.
    """
    read = unknown = 0
    for split in ("validation", "train"):
        for text in run.text(split):
            text = text[: MOST_CHARACTERS - read]
            known = known_characters(run.tokenizer, text)
            unknown += len(text) - len(known)
            own = [run.tokenizer.bos, *run.tokenizer.encode(known).tolist()]
            if tokenizer(known)["input_ids"] != own:
                raise UserError(
                    "not written: the exported tokenizer gives other ids than the lab's; `lmlab"
                    " export onnx` writes the lab's own"
                )
            read += len(known)
    return read, unknown


def known_characters(tokenizer: Tokenizer, text: str) -> str:
    """The text without the characters that a tokenizer of characters spells out: tokenizer.json has
    the one id `unseen` for each, without the digits.
    """
    if not isinstance(tokenizer, Character):
        return text
    known = {*tokenizer.characters, *tokenizer.later}
    if known.issuperset(text):
        return text
    return "".join(character for character in text if character in known)
