"""The cross-entropy of a text under a model: -log p of every token but BOS, each scored once.

A split is one stream of token ids with a beginning-of-document token (BOS) before each document. At
position i the model reads ids up to i and predicts the target, id i + 1. Overlapping windows let
the model read the stream with bounded context: they are `window` tokens long and advance by
`stride`, and each scores only the targets that no earlier window has scored. A smaller stride
therefore gives targets more context. BOS tokens are read but never scored: the sum is the cost of
the text alone, which `bits_per_byte` divides by the size of the raw text.
"""

import math
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lmlab.core.progress import ProgressBar
from lmlab.data.shards import Shards
from lmlab.model import processes
from lmlab.model.models.base import LanguageModel

CALIBRATION_BINS = 15
SCORED_TOKENS_AT_ONCE = 16_384
SHOWN_AS_ZERO = 0.00005
"""Bits per byte below which four decimals are all zeros."""


@dataclass
class Score:
    """Sums over a split; means are properties, so that nothing is rounded twice."""

    tokens: int
    """How many targets were scored."""
    nats: float
    """Their summed cross-entropy."""
    nats_by_position: NDArray[np.float64]
    """Summed nats by position in the window.

    Over all targets but BOS of every window, so those in overlapping windows count more than once.
    """
    tokens_by_position: NDArray[np.int64]
    """The number of targets in each of those sums."""
    nats_by_target: NDArray[np.float64]
    """The nats of each target in the order of the stream, from its second id on; NaN at BOS."""
    confidence: NDArray[np.float64]
    """Summed probability of the most likely token, per bin of that probability."""
    correct: NDArray[np.int64]
    """How often the most likely token was the target, per bin."""
    predictions: NDArray[np.int64]
    """How many targets fell into each bin."""

    @classmethod
    def empty(cls, length: int, window: int) -> "Score":
        """All sums at zero, for a stream of `length` targets read in windows of `window`."""
        return cls(
            tokens=0,
            nats=0.0,
            nats_by_position=np.zeros(window),
            tokens_by_position=np.zeros(window, np.int64),
            nats_by_target=np.full(length, np.nan),
            confidence=np.zeros(CALIBRATION_BINS),
            correct=np.zeros(CALIBRATION_BINS, np.int64),
            predictions=np.zeros(CALIBRATION_BINS, np.int64),
        )

    @property
    def nats_per_token(self) -> float:
        """Mean cross-entropy."""
        return self.nats / self.tokens

    @property
    def accuracy(self) -> float:
        """The share of targets that were the most likely token."""
        return float(self.correct.sum() / self.predictions.sum())

    @property
    def calibration_error(self) -> float:
        """Expected calibration error (Guo et al. 2017).

        Mean |confidence - accuracy| over bins, weighted by their number of predictions.
        """
        return float(np.abs(self.confidence - self.correct).sum() / self.predictions.sum())


class Window(NamedTuple):
    """A window's first target, and the first of its targets that no earlier window has scored."""

    start: int
    first_unscored: int


def windows(length: int, window: int, stride: int) -> Iterator[Window]:
    """The windows over `length` targets; together they cover each exactly once.

    All are min(window, length) wide: the last is shifted back to end with the stream. `stride` is
    at most `window`, otherwise targets between windows would be skipped.
    """
    scored = 0
    for start in range(0, max(1, length), stride):
        begin = max(0, min(start, length - window))
        if scored >= length:
            return
        yield Window(begin, first_unscored=scored)
        scored = min(length, begin + window)


@torch.no_grad()
def score(
    model: LanguageModel,
    stream: NDArray[np.unsignedinteger[Any]],
    bos: int,
    window: int,
    stride: int,
    title: str = "",
    keeps_targets: bool = True,
) -> Score:
    """Score a stream of ids that begins with a BOS token.

    Runs on the model's own device and restores its training mode on return. Processes of one run
    share the windows, and all have the sums. Shows a progress bar when given a title. Without
    `keeps_targets` there is no `nats_by_target`, which takes eight times the memory of a stream of
    bytes. Raises FloatingPointError if a scored target's cross-entropy is NaN.
    """
    device = next(model.parameters()).device
    length = len(stream) - 1
    width = min(window, length)
    all_windows = list(windows(length, window, stride))
    result = Score.empty(length if keeps_targets else 0, width)
    was_training = model.training
    model.eval()
    batch_size = max(1, SCORED_TOKENS_AT_ONCE // width)
    bar = ProgressBar(title, int((stream[1:] != bos).sum()), "tokens") if title else None

    def scored(first: int) -> _ScoredWindows:
        batch = all_windows[first : first + batch_size]
        starts_B = torch.tensor([start for start, _ in batch])
        unscored_B = torch.tensor([first_unscored for _, first_unscored in batch])
        index_BT = starts_B[:, None] + torch.arange(width)
        logits_BTV = model(_ids(stream, index_BT).to(device))
        targets_BT = _ids(stream, index_BT + 1).to(device)
        is_new_BT = index_BT >= unscored_B[:, None]
        return _scored_windows(logits_BTV, targets_BT, index_BT, is_new_BT, bos)

    with bar or nullcontext():
        for batch in processes.shared_out(scored, range(0, len(all_windows), batch_size)):
            _add(result, batch, keeps_targets)
            if bar:
                bar.advance(batch.tokens)
    model.train(was_training)
    return result


def _ids(stream: NDArray[np.unsignedinteger[Any]], index_BT: Tensor) -> Tensor:
    return torch.from_numpy(stream[index_BT.numpy()].astype(np.int64))


class _ScoredWindows(NamedTuple):
    """What some windows add to the sums of a `Score`, whose words these are."""

    tokens: int
    nats: float
    nats_by_position: NDArray[np.float64]
    tokens_by_position: NDArray[np.int64]
    indices: NDArray[np.int64]
    """Of the scored targets in `nats_by_target`."""
    nats_of_each: NDArray[np.float64]
    confidence: NDArray[np.float64]
    correct: NDArray[np.int64]
    predictions: NDArray[np.int64]


def _add(result: Score, windows: _ScoredWindows, keeps_targets: bool) -> None:
    result.tokens += windows.tokens
    result.nats += windows.nats
    if keeps_targets:
        result.nats_by_target[windows.indices] = windows.nats_of_each
    result.nats_by_position += windows.nats_by_position
    result.tokens_by_position += windows.tokens_by_position
    result.confidence += windows.confidence
    result.correct += windows.correct
    result.predictions += windows.predictions


def _scored_windows(
    logits_BTV: Tensor, targets_BT: Tensor, index_BT: Tensor, is_new_BT: Tensor, bos: int
) -> _ScoredWindows:
    """Score a batch of windows.

    `index_BT` holds the targets' indices into `nats_by_target`, on the CPU; `is_new_BT` marks those
    that no earlier window has scored. Raises FloatingPointError where a target's nats are NaN.
    """
    log_probabilities_BTV = logits_BTV.float().log_softmax(-1)
    nats_BT = -log_probabilities_BTV.gather(-1, targets_BT[..., None])[..., 0].double()
    is_text_BT = targets_BT != bos
    scored_BT = is_text_BT & is_new_BT.to(targets_BT.device)
    nats_N = nats_BT[scored_BT]
    nats = float(nats_N.sum())
    if np.isnan(nats):
        raise FloatingPointError("the model's logits are NaN")
    # `where`, not a product: a model may give BOS tokens probability 0, which is infinite nats
    text_nats_BT = nats_BT.where(is_text_BT, 0.0)
    return _ScoredWindows(
        int(scored_BT.sum()),
        nats,
        text_nats_BT.sum(0).cpu().numpy(),
        is_text_BT.sum(0).cpu().numpy(),
        index_BT[scored_BT.cpu()].numpy(),
        nats_N.cpu().numpy(),
        *_calibration(log_probabilities_BTV[scored_BT], targets_BT[scored_BT]),
    )


def _calibration(
    log_probabilities_NV: Tensor, targets_N: Tensor
) -> tuple[NDArray[np.float64], NDArray[np.int64], NDArray[np.int64]]:
    """The sums of confidence, of correct and of all predictions in the bins of their confidence."""
    top = log_probabilities_NV.max(-1)
    confidence_N = top.values.double().exp().clamp(max=1.0).cpu().numpy()
    correct_N = (top.indices == targets_N).cpu().numpy()
    bin_N = np.minimum((confidence_N * CALIBRATION_BINS).astype(np.int64), CALIBRATION_BINS - 1)
    confidence_sums = np.bincount(bin_N, weights=confidence_N, minlength=CALIBRATION_BINS)
    correct_counts = np.bincount(bin_N, weights=correct_N, minlength=CALIBRATION_BINS)
    predictions = np.bincount(bin_N, minlength=CALIBRATION_BINS)
    return confidence_sums.astype(np.float64), correct_counts.astype(np.int64), predictions


def bits_per_byte(nats: float, size: int) -> float:
    """The nats of a whole text as bits per byte of the raw text: nats / ln 2 / size.

    It is comparable across tokenizers.
    """
    return float(nats / np.log(2) / size)


def validation_bits(model: LanguageModel, shards: Shards) -> float:
    """Bits per byte of the validation split in windows that do not overlap; infinite where a logit
    is NaN.
    """
    try:
        scored = score(model, shards.stream("validation"), shards.bos, model.context, model.context)
    except FloatingPointError:
        return math.inf
    return bits_per_byte(scored.nats, shards.count("validation", "bytes"))


def zero_loss_remark(bits: float) -> str:
    """What to print after a loss in bits per byte that is 0 or is shown as 0; otherwise empty."""
    if bits >= SHOWN_AS_ZERO:
        return ""
    return (
        ": a loss of 0, since every token of this text follows from those before it; it is no"
        " measure of learning"
    )
