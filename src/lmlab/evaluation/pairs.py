"""Minimal pairs: which of two texts that differ in one respect a model gives more probability."""

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from lmlab.data.tokenizers.base import Tokenizer
from lmlab.model.models.base import LanguageModel
from lmlab.model.scoring import score

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]

TIE = 1e-6
"""Nats closer than this count as equal."""
TOKENS_AT_ONCE = 8192


def accuracy(good: ArrayLike, bad: ArrayLike) -> float:
    """The share of pairs whose good side has fewer nats than the bad; a tie counts one half."""
    difference = np.asarray(bad, dtype=np.float64) - np.asarray(good, dtype=np.float64)
    return float(np.where(np.abs(difference) < TIE, 0.5, difference > 0).mean())


@torch.no_grad()
def text_nats(
    model: LanguageModel, tokenizer: Tokenizer, texts: Sequence[str]
) -> tuple[Floats, Integers]:
    """Nats of each text as a document of its own, and its number of tokens.

    A text longer than the model's context is scored in windows that advance by half of it.
    """
    documents = [
        np.array([tokenizer.bos, *tokenizer.encode(text).tolist()], dtype=np.int64)
        for text in texts
    ]
    lengths = np.array([len(document) - 1 for document in documents])
    nats = np.zeros(len(documents))
    for numbers in _groups(lengths, model.context):
        group = [documents[number] for number in numbers]
        if lengths[numbers[0]] > model.context:
            nats[numbers] = _long_nats(model, group[0], tokenizer.bos)
        else:
            nats[numbers] = _short_nats(model, group, tokenizer.bos)
    return nats, lengths


def _groups(lengths: Integers, context: int) -> Iterator[list[int]]:
    """Numbers of texts that are scored together, shortest first.

    A group padded to its longest text has at most TOKENS_AT_ONCE tokens. A text that is longer than
    this or than the context is a group of its own.
    """
    group: list[int] = []
    for number in np.argsort(lengths, kind="stable").tolist():
        length = lengths[number]
        fits = length <= context and (len(group) + 1) * length <= TOKENS_AT_ONCE
        if group and not fits:
            yield group
            group = []
        group.append(number)
    if group:
        yield group


def _long_nats(model: LanguageModel, document: Integers, bos: int) -> float:
    """Nats of one text that is longer than the context."""
    stream, stride = document.astype(np.uint32), max(1, model.context // 2)
    return score(model, stream, bos, model.context, stride).nats


def _short_nats(model: LanguageModel, documents: list[Integers], bos: int) -> Floats:
    """Nats of texts that fit into the context, padded to the longest of them."""
    lengths = torch.tensor([len(document) - 1 for document in documents])
    width = int(lengths.max())
    rows = np.full((len(documents), width + 1), bos)
    for row, document in zip(rows, documents, strict=True):
        row[: len(document)] = document
    nats_BT = token_nats(model, torch.from_numpy(rows).to(next(model.parameters()).device))
    is_text_BT = torch.arange(width) < lengths[:, None]
    return nats_BT.where(is_text_BT, 0.0).sum(1).numpy()


@torch.no_grad()
def token_nats(model: LanguageModel, tokens_BT: Tensor) -> Tensor:
    """Nats of every token but the first, in double precision on the CPU, shape (B, T - 1)."""
    log_probability_BTV = model(tokens_BT[:, :-1]).float().log_softmax(-1)
    targets_BT = tokens_BT[:, 1:]
    return -log_probability_BTV.gather(-1, targets_BT[..., None])[..., 0].cpu().double()
