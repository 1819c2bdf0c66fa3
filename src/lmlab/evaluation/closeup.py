"""A model at work on one text: its attention weights, and its prediction after each block."""

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lmlab.data.tokenizers.base import Tokenizer
from lmlab.model import places
from lmlab.model.models.base import LanguageModel

MOST_TOKENS = 40
"""Of the text: larger pictures cannot be read, and they grow with the square."""
DIGITS = 4
"""After the decimal point, since the file is read by charts."""

Matrix = list[list[float]]


@dataclass(frozen=True)
class CloseUp:
    """What a picture of the model at work shows; T tokens, the BOS token first."""

    tokens: list[str]
    attention: list[list[Matrix]]
    """By block and head: the weights, a row for each position and a column for each position it
    attends to. A block without softmax attention has no heads.
    """
    lens: list[tuple[list[str], list[float]]]
    """By block: the likeliest next token at each position if the model stopped there, and its
    probability.
    """

    def as_json(self) -> dict[str, Any]:
        """The content of close_up.json."""
        return asdict(self)


@torch.no_grad()
def close_up(model: LanguageModel, tokenizer: Tokenizer, bos: int, text: str) -> CloseUp:
    """Run the model on a text, cut to its context and to MOST_TOKENS; numbers rounded to DIGITS.

    The BOS token stands before the text, so the first prediction rests on nothing.
    """
    ids = [bos, *tokenizer.encode(text).tolist()][: min(model.context, MOST_TOKENS)]
    device = next(model.parameters()).device
    tokens_BT = torch.tensor([ids], device=device)

    def names(tokens: list[int]) -> list[str]:
        return ["start" if id_ == bos else shown(tokenizer.token_bytes[id_]) for id_ in tokens]

    with places.record(model) as states:
        model(tokens_BT)
    attention: list[list[Matrix]] = []
    lens: list[tuple[list[str], list[float]]] = []
    for number, _ in enumerate(model.blocks):
        within = [name for name in states if name.startswith(f"blocks.{number}.")]
        patterns = [states[name][0] for name in within if name.endswith(".pattern")]
        attention.append([_rounded(head_TS) for pattern_HTS in patterns for head_TS in pattern_HTS])
        logits_BTV = model.head(states[f"blocks.{number}.output"])
        highest_T, likeliest_T = logits_BTV[0].float().softmax(dim=-1).max(dim=-1)
        lens.append((names(likeliest_T.tolist()), _rounded(highest_T)))
    return CloseUp(names(ids), attention, lens)


def shown(token: bytes) -> str:
    """A token's bytes as visible text: symbols for white space, a box for what is not text."""
    text = token.decode("utf-8", "replace").replace(" ", "␣").replace("\n", "⏎").replace("\t", "⇥")
    return "".join(sign if sign.isprintable() else "▯" for sign in text) or "▯"


def _rounded(values: Tensor) -> Any:
    return np.round(values.double().cpu().numpy(), DIGITS).tolist()
