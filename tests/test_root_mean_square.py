"""Division by the root mean square is torch's own, with derivatives of every kind that learning
rules and probes ask for.
"""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.autograd import forward_ad, gradcheck, gradgradcheck

from lmlab.model.layers.root_mean_square import rms_norm

WIDTH = 6
gained = pytest.mark.parametrize("gained", [True, False])


def drawn(gained: bool, dtype: torch.dtype = torch.float64) -> list[Tensor]:
    """Numbers, not side by side in memory, and a gain."""
    torch.manual_seed(0)
    x = torch.randn(3, WIDTH, 4, dtype=dtype).mT.requires_grad_()
    return [x, torch.randn(WIDTH, dtype=dtype).requires_grad_()][: 1 + gained]


def torchs(x: Tensor, gain: Tensor | None = None) -> Tensor:
    return nn.functional.rms_norm(x, (WIDTH,), gain, eps=1e-5)


def gradients(norm: Callable[..., Tensor], given: list[Tensor], **options: bool) -> list[Tensor]:
    error = torch.linspace(-1, 2, given[0].numel()).view_as(given[0]).to(given[0].dtype)
    return list(torch.autograd.grad(norm(*given), given, error, **options))


@gained
def test_first_and_second_derivatives_are_those_of_small_differences(gained: bool) -> None:
    given = drawn(gained)
    assert gradcheck(rms_norm, given, check_forward_ad=True, check_batched_grad=True)
    assert gradgradcheck(rms_norm, given)


@gained
@pytest.mark.parametrize(
    ("dtype", "within"), [(torch.float64, 1e-12), (torch.float32, 2e-6), (torch.bfloat16, 3e-2)]
)
def test_values_and_gradients_are_torchs(gained: bool, dtype: torch.dtype, within: float) -> None:
    given = drawn(gained, dtype)
    torch.testing.assert_close(rms_norm(*given), torchs(*given), rtol=within, atol=within)
    for found, theirs in zip(gradients(rms_norm, given), gradients(torchs, given), strict=True):
        assert found.dtype == dtype
        torch.testing.assert_close(found, theirs, rtol=within, atol=within)
    if (
        dtype != torch.bfloat16
    ):  # and what does not train sees the same to the last bit, laid out alike in memory
        with torch.no_grad():
            plain = rms_norm(*given)
        assert torch.equal(rms_norm(*given), plain)
        assert rms_norm(*given).stride() == plain.stride()


@gained
def test_a_gradient_that_may_be_derived_again_is_the_same(gained: bool) -> None:
    given = drawn(gained)
    once, again = gradients(rms_norm, given), gradients(rms_norm, given, create_graph=True)
    for found, derivable in zip(once, again, strict=True):
        torch.testing.assert_close(found, derivable, rtol=1e-12, atol=1e-12)


def test_what_is_in_bfloat16_has_a_gain_in_float32() -> None:
    x, gain = drawn(True, torch.float32)
    low = x.detach().bfloat16().requires_grad_()
    y = rms_norm(low, gain)
    assert y.dtype == torch.bfloat16
    of_x, of_gain = gradients(rms_norm, [low, gain])
    assert (of_x.dtype, of_gain.dtype) == (torch.bfloat16, torch.float32)
    precise = gradients(torchs, [x, gain])
    torch.testing.assert_close([of_x.float(), of_gain], precise, rtol=3e-2, atol=3e-2)


@gained
def test_directions_can_be_followed_forward_and_many_at_a_time(gained: bool) -> None:
    given = drawn(gained)
    several = [torch.stack([part, 2 * part, part + 1]).detach() for part in given]

    def slope(*along: Tensor) -> Tensor:
        return torch.func.jvp(rms_norm, tuple(given), along)[1]

    together = torch.vmap(slope)(*several)
    with forward_ad.dual_level():
        for number in range(3):
            dual = [
                forward_ad.make_dual(part, along[number])
                for part, along in zip(given, several, strict=True)
            ]
            assert torch.equal(forward_ad.unpack_dual(rms_norm(*dual)).tangent, together[number])
    for number in range(3):
        torch.testing.assert_close(
            torch.vmap(rms_norm)(*several)[number], rms_norm(*(part[number] for part in several))
        )
