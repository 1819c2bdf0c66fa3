"""A model seen at work on one text: where its heads look, and what each block would say if the
model stopped there.
"""

from typing import Any

import numpy as np
import torch
from torch import Tensor

from lmlab.data.tokenizers.base import Tokenizer
from lmlab.evaluation.probes.attention import Watched
from lmlab.evaluation.probes.base import streams
from lmlab.model.models.base import LanguageModel

MOST_TOKENS = 40
"""Of the text: pictures of more cannot be read, and grow with the square."""
DIGITS = 4


@torch.no_grad()
def close_up(model: LanguageModel, tokenizer: Tokenizer, bos: int, text: str) -> dict[str, Any]:
    """The text's tokens, and by block `attention` (head, position, position seen) and `lens`
    (position: guess, probability).

    The BOS token comes first, so the first guess is made from nothing. Blocks without a softmax
    over tokens have no heads. Everything is rounded to DIGITS, for a file that is read by charts.
    """
    ids = [bos, *tokenizer.encode(text).tolist()][: min(model.context, MOST_TOKENS)]

    def named(numbers: list[int]) -> list[str]:
        return [
            "start" if number == bos else shown(tokenizer.token_bytes[number]) for number in numbers
        ]

    attention, lens = [], []
    with Watched() as watched:
        for x_BTD in streams(model, torch.tensor([ids], device=next(model.parameters()).device)):
            attention.append(
                [
                    _rounded(weights_TS)
                    for weights_BHTS in watched.taken()
                    for weights_TS in weights_BHTS[0]
                ]
            )
            sure_T, guess_T = model.head(x_BTD)[0].float().softmax(dim=-1).max(dim=-1)
            lens.append([named(guess_T.tolist()), _rounded(sure_T)])
    return {"tokens": named(ids), "attention": attention, "lens": lens}


def shown(token: bytes) -> str:
    """A token's bytes as text that can be seen: spaces and line ends as signs, what is no text as a
    box.
    """
    text = token.decode("utf-8", "replace").replace(" ", "␣").replace("\n", "⏎").replace("\t", "⇥")
    return "".join(sign if sign.isprintable() else "▯" for sign in text) or "▯"


def _rounded(values: Tensor) -> Any:
    return np.round(values.double().cpu().numpy(), DIGITS).tolist()
