"""Minimal pairs: which of two texts that differ in one thing is the likelier to a model."""

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray

from lmlab.data.tokenizers.base import Tokenizer
from lmlab.model.models.base import LanguageModel
from lmlab.model.scoring import score

Floats = NDArray[np.float64]

TIE = 1e-6
"""Costs nearer than this, in nats, count as equal."""
TOKENS_AT_ONCE = 8192


def accuracy(good: ArrayLike, bad: ArrayLike) -> float:
    """The share of pairs whose good side costs less; a tie scores one half."""
    difference = np.asarray(bad, dtype=np.float64) - np.asarray(good, dtype=np.float64)
    return float(np.where(np.abs(difference) < TIE, 0.5, difference > 0).mean())


@torch.no_grad()
def text_nats(
    model: LanguageModel, tokenizer: Tokenizer, texts: Sequence[str]
) -> tuple[Floats, NDArray[np.int64]]:
    """What each text costs as a document of its own, in nats, and how many tokens it has.

    One that is longer than the model's context is read in windows that advance by half of it.
    """
    ids = [
        np.array([tokenizer.bos, *tokenizer.encode(text).tolist()], dtype=np.int64)
        for text in texts
    ]
    lengths = np.array([len(row) - 1 for row in ids])
    nats = np.zeros(len(ids))
    device = next(model.parameters()).device
    order = np.argsort(lengths, kind="stable").tolist()
    while order:
        width = int(lengths[order[0]])
        count = 1
        while (
            count < len(order)
            and lengths[order[count]] <= model.context
            and ((count + 1) * lengths[order[count]] <= TOKENS_AT_ONCE)
        ):
            width = int(lengths[order[count]])
            count += 1
        some, order = order[:count], order[count:]
        if width > model.context:
            nats[some[0]] = score(
                model,
                ids[some[0]].astype(np.uint32),
                tokenizer.bos,
                model.context,
                max(1, model.context // 2),
            ).nats
            continue
        rows = np.full((count, width + 1), tokenizer.bos)
        for row, text in enumerate(some):
            rows[row, : lengths[text] + 1] = ids[text]
        tokens_BT = torch.from_numpy(rows).to(device)
        logs_BTV = model(tokens_BT[:, :-1]).float().log_softmax(-1)
        nats_BT = -logs_BTV.gather(-1, tokens_BT[:, 1:, None])[..., 0].cpu().double()
        is_text = torch.arange(width) < torch.from_numpy(lengths[some])[:, None]
        nats[some] = nats_BT.where(is_text, 0.0).sum(1).numpy()
    return nats, lengths
