"""What each model beside the transformer computes, held against torch's own, another form of the same, or a count."""

import pytest
import small
import torch
from torch import nn

from lmlab import parts
from lmlab.models.base import LanguageModel
from lmlab.models.min_gru import scan


def rough(name: str, **changes: object) -> LanguageModel:
    """A model in double precision with large weights."""
    return small.rough(parts.choose(small.tree(**changes), "models", name))


def numbers(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


# ---------------------------------------------------------------- LSTM


def test_lstm_is_torchs_lstm() -> None:
    recurrence = rough("lstm").blocks[0].recurrence
    torchs = nn.LSTM(16, 16, batch_first=True).double()

    def in_torchs_order(rows: torch.Tensor) -> torch.Tensor:
        take, keep, show, candidate = rows.detach().chunk(4)
        return torch.cat((take, keep, candidate, show))

    torchs.weight_ih_l0.data = in_torchs_order(recurrence.from_input.weight)
    torchs.weight_hh_l0.data = in_torchs_order(recurrence.from_last.weight)
    torchs.bias_ih_l0.data = in_torchs_order(recurrence.from_input.bias)
    torchs.bias_hh_l0.data.zero_()
    x_BTD = numbers(3, 20, 16)
    torch.testing.assert_close(recurrence(x_BTD, None), torchs(x_BTD)[0], rtol=0, atol=1e-10)


def test_lstm_keeps_what_its_gates_keep() -> None:
    """With the forget gate open and the input gate shut after the first token, the cell stays as it is."""
    recurrence = rough("lstm").blocks[0].recurrence
    for weight in (recurrence.from_input.weight, recurrence.from_last.weight):
        weight.data[: 3 * 16] = 0  # gates that read nothing
    recurrence.from_input.bias.data[:16] = -1e4  # shut
    recurrence.from_input.bias.data[16 : 2 * 16] = 1e4  # open
    x_BTD = numbers(1, 50, 16)
    assert not recurrence(x_BTD, None).any()
    recurrence.from_input.weight.data[:16, 0] = 2e4  # open for the first token alone, by its first number
    x_BTD[:, :, 0] = -1
    x_BTD[:, 0, 0] = 1
    kept = recurrence(x_BTD, None)
    assert kept.any()
    torch.testing.assert_close(kept, kept[:, :1].expand_as(kept), rtol=0, atol=1e-12)


# ---------------------------------------------------------------- minGRU


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.float64, 1e-9)])
@pytest.mark.parametrize("time", [1, 2, 13, 128, 300])
def test_min_grus_scan_is_the_loop(time: int, dtype: torch.dtype, tolerance: float) -> None:
    keep = (3 * numbers(2, time, 5)).sigmoid().to(dtype)
    keep[:, :, 0], keep[:, :, 1] = 0, 1  # what forgets all, and what forgets nothing
    add = numbers(2, time, 5, seed=1).to(dtype)
    state, states = torch.zeros(2, 5, dtype=torch.float64), []
    for at in range(time):
        state = keep[:, at].double() * state + add[:, at].double()
        states.append(state)
    torch.testing.assert_close(scan(keep, add).double(), torch.stack(states, dim=1), rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.float64, 1e-9)])
def test_min_gru_in_parallel_is_min_gru_step_by_step(dtype: torch.dtype, tolerance: float) -> None:
    recurrence = rough("min_gru").blocks[0].recurrence.to(dtype)
    x_BTD = numbers(2, 200, 16).to(dtype)
    update, candidate = recurrence.update_candidate(x_BTD).chunk(2, dim=-1)
    share, state, states = update.sigmoid(), torch.zeros_like(candidate[:, 0]), []
    for at in range(200):
        state = (1 - share[:, at]) * state + share[:, at] * candidate[:, at]
        states.append(state)
    expected = recurrence.out(torch.stack(states, dim=1))
    torch.testing.assert_close(recurrence(x_BTD, None), expected, rtol=tolerance, atol=tolerance)
