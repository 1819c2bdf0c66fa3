"""What a model pays for a text: the negative log-likelihood of every token of a split, each counted
once.

The text is one stream with the BOS token before each document, which gives the first token
something to be predicted from. Windows of `window` tokens advance by `stride`; each scores the
targets no window before it has scored. Document tokens are read but never scored, so the sum is the
cost of the text and of nothing else.
"""

from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from lmlab.core.progress import ProgressBar
from lmlab.model.models.base import LanguageModel

CALIBRATION_BINS = 15
SCORED_TOKENS_AT_ONCE = 16_384
SHOWN_AS_ZERO = 0.00005
"""Bits per byte below which four decimals show none."""


@dataclass
class Score:
    """Sums over a split. Means are properties, so that nothing is rounded twice."""

    tokens: int
    nats: float
    nats_at: NDArray[np.float64]
    """Summed nats by position in the window, over every window (so some targets count twice when
    stride < window).
    """
    tokens_at: NDArray[np.int64]
    confidence: NDArray[np.float64]
    """Summed probability of the likeliest token, by bins of that probability."""
    right: NDArray[np.int64]
    """How often the likeliest token was the target, by the same bins."""
    calls: NDArray[np.int64]
    """How many predictions fell into each bin."""
    nats_of: NDArray[np.float64]
    """Of each target, in the order of the text (the first is the stream's second id); nan where it
    is not charged.
    """

    @property
    def nats_per_token(self) -> float:
        """Mean cross-entropy."""
        return self.nats / self.tokens

    @property
    def accuracy(self) -> float:
        """The share of tokens that were the likeliest."""
        return float(self.right.sum() / self.calls.sum())

    @property
    def calibration_error(self) -> float:
        """Expected calibration error (Guo et al. 2017): mean distance of confidence from accuracy
        over the bins.
        """
        return float(np.abs(self.confidence - self.right).sum() / self.calls.sum())


def windows(length: int, window: int, stride: int) -> Iterator[tuple[int, int]]:
    """(start, first target to score) of each window over `length` targets; together they score each
    exactly once.

    `stride` is at most `window`, or targets between windows would be left out.
    """
    scored = 0
    for start in range(0, max(1, length), stride):
        begin = max(0, min(start, length - window))
        if scored >= length:
            return
        yield begin, scored
        scored = min(length, begin + window)


@torch.no_grad()
def score(
    model: LanguageModel,
    stream: NDArray[np.unsignedinteger[Any]],
    bos: int,
    window: int,
    stride: int,
    title: str = "",
) -> Score:
    """Score a stream of ids that begins with a BOS token. Shows a progress bar when given a title.

    Works on the model's own device and leaves its training mode as it was. Raises
    FloatingPointError when a logit is no number.
    """
    device = next(model.parameters()).device
    ids = torch.from_numpy(stream.astype(np.int64))
    length = len(ids) - 1
    width = min(window, length)
    places = list(windows(length, window, stride))
    result = Score(
        0,
        0.0,
        np.zeros(width),
        np.zeros(width, np.int64),
        np.zeros(CALIBRATION_BINS),
        np.zeros(CALIBRATION_BINS, np.int64),
        np.zeros(CALIBRATION_BINS, np.int64),
        np.full(length, np.nan),
    )
    was_training = model.training
    model.eval()
    at_once = max(1, SCORED_TOKENS_AT_ONCE // width)
    bar = ProgressBar(title, int((stream[1:] != bos).sum()), "tokens") if title else None
    with bar or nullcontext():
        for first in range(0, len(places), at_once):
            some = places[first : first + at_once]
            starts = torch.tensor([start for start, _ in some])
            places_BT = starts[:, None] + torch.arange(width)
            rows = ids[torch.cat((places_BT, places_BT[:, -1:] + 1), dim=1)].to(device)
            fresh = torch.tensor([fresh - start for start, fresh in some], device=device)
            before = result.tokens
            _add(result, model(rows[:, :-1]), rows[:, 1:], fresh, bos, places_BT)
            if bar:
                bar.advance(result.tokens - before)
    model.train(was_training)
    return result


def _add(
    result: Score,
    logits_BTV: torch.Tensor,
    targets_BT: torch.Tensor,
    fresh_B: torch.Tensor,
    bos: int,
    places_BT: torch.Tensor,
) -> None:
    """Add one batch of windows; in each, targets from `fresh` on have not been scored before."""
    logs_BTV = logits_BTV.float().log_softmax(-1)
    nats_BT = -logs_BTV.gather(-1, targets_BT[..., None])[..., 0].double()
    is_text = targets_BT != bos
    scored = is_text & (
        torch.arange(targets_BT.shape[1], device=fresh_B.device) >= fresh_B[:, None]
    )
    result.tokens += int(scored.sum())
    result.nats += float(nats_BT[scored].sum())
    result.nats_of[places_BT[scored.cpu()].numpy()] = nats_BT[scored].cpu().numpy()
    if np.isnan(result.nats):
        raise FloatingPointError("the model's logits are no numbers")
    result.nats_at += (
        nats_BT.where(is_text, 0.0).sum(0).cpu().numpy()
    )  # a model may call BOS tokens impossible
    result.tokens_at += is_text.sum(0).cpu().numpy()
    top = logs_BTV[scored].max(-1)
    sure = top.values.double().exp().clamp(max=1.0).cpu().numpy()
    right = (top.indices == targets_BT[scored]).cpu().numpy()
    bins = np.minimum((sure * CALIBRATION_BINS).astype(np.int64), CALIBRATION_BINS - 1)
    result.confidence += np.bincount(bins, weights=sure, minlength=CALIBRATION_BINS)
    result.right += np.bincount(bins, weights=right, minlength=CALIBRATION_BINS).astype(np.int64)
    result.calls += np.bincount(bins, minlength=CALIBRATION_BINS)


def bits_per_byte(nats: float, size: int) -> float:
    """Nats of a whole text as bits for each byte of the raw text: the measure that compares
    tokenizers.
    """
    return float(nats / np.log(2) / size)


def remark_on_zero(bits: float) -> str:
    """What has to be said behind a loss in bits per byte that is 0, or is shown as 0; empty for any
    other.
    """
    if bits >= SHOWN_AS_ZERO:
        return ""
    return (
        ": a loss of 0, since every token of this text follows from those before it; it is no"
        " measure of learning"
    )
