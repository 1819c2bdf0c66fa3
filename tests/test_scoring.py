"""Every token of a split is scored once, with the cross-entropy that the model gives it."""

import math
from collections.abc import Callable

import numpy as np
import pytest
import small
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from lmlab.data.tokenizers.byte import Byte
from lmlab.model import scoring
from lmlab.model.models.base import LanguageModel
from lmlab.model.scoring import bits_per_byte, score, windows, zero_loss_remark

DOCUMENT = small.VOCABULARY - 1


class HandMade(LanguageModel):
    """Logits by a rule of the test's own: a function of tokens_BT."""

    def __init__(
        self, logits: Callable[[Tensor], Tensor], vocabulary_size: int, context: int
    ) -> None:
        super().__init__()
        self.logits, self.vocabulary_size, self.context = logits, vocabulary_size, context
        self.blocks, self.readout = nn.ModuleList(), nn.Linear(1, 1)

    def embed(self, tokens_BT: Tensor, start: int = 0) -> Tensor:
        return tokens_BT

    def head(self, x_BTD: Tensor) -> Tensor:
        return self.logits(x_BTD)


def stream(length: int, seed: int = 0, documents: int = 5) -> np.ndarray:
    """Random text with a BOS token at the start and here and there."""
    rng = np.random.default_rng(seed)
    ids = rng.integers(DOCUMENT, size=length).astype(np.uint8)
    ids[rng.integers(length, size=documents)] = DOCUMENT
    ids[0] = DOCUMENT
    return ids


@settings(max_examples=300)
@given(length=st.integers(1, 200), window=st.integers(1, 60), data=st.data())
@example(length=1, window=8, data=None)
@example(length=8, window=8, data=None)
@example(length=9, window=8, data=None)
def test_windows_score_every_target_once_with_as_much_context_as_promised(
    length: int, window: int, data: object
) -> None:
    stride = data.draw(st.integers(1, window)) if data else window  # type: ignore[attr-defined]
    scored: list[int] = []
    for start, fresh in windows(length, window, stride):
        end = min(length, start + window)
        assert 0 <= start <= fresh < end
        assert end - start == min(length, window)  # all of one width, and inside the stream
        for target in range(fresh, end):
            assert target - start + 1 >= min(target + 1, window - stride + 1)
        scored += range(fresh, end)
    assert scored == list(range(length))


@pytest.mark.parametrize(
    ("length", "window", "stride"),
    [(30, 8, 8), (30, 8, 3), (30, 8, 1), (5, 8, 8), (2, 8, 4), (65, 8, 5)],
)
def test_the_score_is_that_of_a_slow_loop(
    length: int, window: int, stride: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scoring, "SCORED_TOKENS_AT_ONCE", 24)  # several batches of windows
    model, ids = small.rough(small.some_model()), stream(length, documents=length // 8)
    nats = tokens = right = 0.0
    scored_to = 0
    for start in range(0, length, stride):
        # a window moves on by a stride, but not past the end of the stream
        begin = max(0, min(start, length - 1 - window))
        for at in range(max(scored_to, begin), min(length - 1, begin + window)):
            logits = (
                model(torch.tensor(ids[None, begin : at + 1].astype(np.int64)))[0, -1]
                .float()
                .detach()
            )
            target = int(ids[at + 1])
            if target != DOCUMENT:
                nats -= float(logits.log_softmax(0)[target])
                tokens += 1
                right += int(logits.argmax()) == target
        scored_to = max(scored_to, min(length - 1, begin + window))
    result = score(model, ids, DOCUMENT, window, stride)
    assert result.tokens == tokens == (ids[1:] != DOCUMENT).sum()
    assert result.nats == pytest.approx(nats, rel=1e-5)
    assert result.nats_per_token == pytest.approx(nats / tokens, rel=1e-5)
    assert result.accuracy == pytest.approx(right / tokens)


def test_with_a_stride_of_one_every_token_has_a_whole_window_before_it() -> None:
    model, ids = small.rough(small.some_model()), stream(40)
    nats = 0.0
    for at in range(1, len(ids)):
        if ids[at] != DOCUMENT:
            seen = torch.tensor(ids[None, max(0, at - 8) : at].astype(np.int64))
            nats -= model(seen)[0, -1].float().log_softmax(0)[int(ids[at])].item()
    assert score(model, ids, DOCUMENT, 8, 1).nats == pytest.approx(nats, rel=1e-5)


def test_a_uniform_byte_model_costs_eight_bits_a_byte() -> None:
    tokenizer = Byte()
    logits = torch.zeros(257)
    logits[tokenizer.bos] = float("-inf")  # a model may know that a BOS token is never asked for
    model = HandMade(lambda tokens: logits.expand(*tokens.shape, -1), 257, 16)
    texts = ["Der Großvater zahlte 5 €.\n", "", "\U0001f600"]
    ids = np.concatenate([[tokenizer.bos, *tokenizer.encode(text)] for text in texts]).astype(
        np.uint16
    )
    size = sum(len(text.encode()) for text in texts)
    result = score(model, ids, tokenizer.bos, 16, 5)
    assert result.tokens == size
    assert result.nats_per_token == pytest.approx(math.log(256), rel=1e-6)
    assert bits_per_byte(result.nats, size) == pytest.approx(8.0, rel=1e-6)
    used = result.tokens_by_position > 0
    assert result.nats_by_position[used] / result.tokens_by_position[used] == pytest.approx(
        [math.log(256)] * used.sum(), rel=1e-6
    )


def test_bits_per_byte_divides_by_bytes_and_not_by_tokens() -> None:
    assert bits_per_byte(6 * math.log(2), 3) == pytest.approx(2.0)  # six bits for "€"


@pytest.mark.parametrize(
    ("bits", "shown"), [(0.0, "0.0000"), (0.00004, "0.0000"), (0.00006, "0.0001"), (2.0, "2.0000")]
)
def test_a_loss_that_is_shown_as_zero_is_remarked_on(bits: float, shown: str) -> None:
    assert f"{bits:.4f}" == shown
    assert ("a loss of 0" in zero_loss_remark(bits)) == (shown == "0.0000")


def test_overlapping_windows_show_a_model_more_text() -> None:
    ids = np.array([DOCUMENT, *range(10), *range(10), *range(10)], dtype=np.uint8)

    def repeats_what_stood_ten_before(tokens: Tensor) -> Tensor:
        logits = torch.zeros(*tokens.shape, small.VOCABULARY)
        if tokens.shape[1] >= 10:
            logits[:, 9:] += 20 * nn.functional.one_hot(
                tokens[:, : tokens.shape[1] - 9], small.VOCABULARY
            )
        logits[..., DOCUMENT] = 0
        return logits

    model = HandMade(repeats_what_stood_ten_before, small.VOCABULARY, 15)
    unaware, aware = (score(model, ids, DOCUMENT, 15, stride) for stride in (15, 1))
    # the first ten are new, and each of the others stands ten before, if the window reaches that
    # far
    assert aware.nats == pytest.approx(10 * math.log(small.VOCABULARY), rel=1e-4)
    assert unaware.nats > aware.nats + 5
    assert unaware.tokens == aware.tokens == 30


def test_bos_tokens_are_read_but_not_scored() -> None:
    model, ids = small.rough(small.some_model()), stream(30, documents=8)
    free = DOCUMENT + 100  # as if there were none
    assert (
        score(model, ids, DOCUMENT, 8, 8).tokens + (ids[1:] == DOCUMENT).sum()
        == score(model, ids, free, 8, 8).tokens
    )
    other = ids.copy()
    other[0] = 0
    assert score(model, other, DOCUMENT, 8, 8).nats != score(model, ids, DOCUMENT, 8, 8).nats


def test_sums_by_position_add_up_to_the_whole_where_no_window_overlaps() -> None:
    model, ids = small.rough(small.some_model()), stream(8 * 7 + 1)
    result = score(model, ids, DOCUMENT, 8, 8)
    assert result.nats_by_position.sum() == pytest.approx(result.nats)
    assert result.tokens_by_position.sum() == result.tokens
    assert len(result.tokens_by_position) == 8


@pytest.mark.parametrize("stride", [1, 3, 8])
def test_every_token_has_its_own_nats_in_the_order_of_the_text(stride: int) -> None:
    model, ids = small.rough(small.some_model()), stream(60)
    result = score(model, ids, DOCUMENT, 8, stride)
    assert (np.isnan(result.nats_by_target) == (ids[1:] == DOCUMENT)).all()
    assert np.nansum(result.nats_by_target) == pytest.approx(result.nats)
    for place in np.flatnonzero(~np.isnan(result.nats_by_target))[20:30].tolist():
        begin = next(begin for begin, fresh in windows(59, 8, stride) if fresh <= place < begin + 8)
        text = torch.from_numpy(ids[begin : place + 1].astype(np.int64))[None]
        with torch.no_grad():
            cost = -model(text)[0, -1].float().log_softmax(-1)[int(ids[place + 1])]
        assert result.nats_by_target[place] == pytest.approx(float(cost), rel=1e-4)


def test_calibration_bins_hold_each_scored_token_once() -> None:
    model, ids = small.rough(small.some_model()), stream(100)
    result = score(model, ids, DOCUMENT, 8, 3)
    assert result.predictions.sum() == result.tokens
    assert (result.correct <= result.predictions).all()
    edges = np.arange(scoring.CALIBRATION_BINS + 1) / scoring.CALIBRATION_BINS
    used = result.predictions > 0
    mean = result.confidence[used] / result.predictions[used]
    assert (edges[:-1][used] - 1e-9 <= mean).all()
    assert (mean <= edges[1:][used] + 1e-9).all()
    assert 0 <= result.calibration_error <= 1


def test_calibration_error_of_a_model_that_knows_how_sure_to_be() -> None:
    # certain of 0 and always right; then certain and right in every fourth case
    ids = np.zeros(401, dtype=np.uint8)

    def certain(tokens: Tensor) -> Tensor:
        logits = torch.full((*tokens.shape, 3), -100.0)
        logits[..., 0] = 0
        return logits

    model = HandMade(certain, 3, 10)
    assert score(model, ids, 2, 10, 10).calibration_error == pytest.approx(0)
    ids[1:][np.arange(400) % 4 > 0] = 1
    result = score(model, ids, 2, 10, 10)
    assert result.calibration_error == pytest.approx(0.75)
    assert result.accuracy == 0.25


def test_scoring_leaves_the_model_as_it_was(capsys: pytest.CaptureFixture[str]) -> None:
    model = small.model(small.some_model(dropout=0.5)).train()
    before = torch.get_rng_state()
    ids = stream(50)
    first = score(model, ids, DOCUMENT, 8, 4, "evaluate: validation")
    assert model.training
    assert torch.equal(torch.get_rng_state(), before)
    assert all(parameter.grad is None for parameter in model.parameters())
    assert score(model, ids, DOCUMENT, 8, 4).nats == first.nats
    assert f"evaluate: validation: {first.tokens}/{first.tokens} tokens" in capsys.readouterr().out


def test_without_its_targets_a_score_is_the_same_but_for_them() -> None:
    model = small.rough(small.some_model())
    ids = stream(90)
    whole = score(model, ids, DOCUMENT, 8, 3)
    without = score(model, ids, DOCUMENT, 8, 3, keeps_targets=False)
    assert len(without.nats_by_target) == 0
    assert (without.nats, without.tokens) == (whole.nats, whole.tokens)
    for name in ("nats_by_position", "confidence", "correct", "predictions"):
        assert (getattr(without, name) == getattr(whole, name)).all()
