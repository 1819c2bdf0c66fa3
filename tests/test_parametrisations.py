"""First weights and rates as the width grows: the formulas, and a coordinate check (Yang et al. 2022, appendix D.1)."""

from math import log

import pytest
import small
import torch

from lmlab import parts
from lmlab.errors import UserError
from lmlab.models.base import LanguageModel, next_token_loss
from lmlab.optimizers.base import parameter_groups
from lmlab.parametrisations.base import Parametrisation
from lmlab.stepping import TrainParams, begin

CPU = torch.device("cpu")
WIDTHS = [64, 128, 256, 512]


def parametrisation(name: str, **changes: object) -> Parametrisation:
    built: Parametrisation = parts.choose(small.tree(**changes), "parametrisations", name).build()
    return built


@pytest.mark.parametrize("name", parts.names("parametrisations"))
def test_at_the_base_width_everything_is_as_it_stands(name: str) -> None:
    made = parametrisation(name, base_width=16)
    model, plain = small.model(small.some_model()), small.model(small.some_model())
    made.start(model)
    assert all(torch.equal(one, other) for one, other in zip(model.parameters(), plain.parameters(), strict=True))
    for power in (-1.0, 0.0, 1.0):
        assert made.rate_factor(16, power) == 1.0


def test_the_standard_rates_fall_with_one_power_of_the_width() -> None:
    made = parametrisation("standard", base_width=128, power=0.5)
    assert [made.rate_factor(width, -1.0) for width in (32, 128, 512)] == [2.0, 1.0, 0.5]
    assert parametrisation("standard", power=0.0).rate_factor(1024, -1.0) == 1.0


def test_maximal_update_scales_matrices_readout_and_their_rates_and_nothing_else() -> None:
    made = parametrisation("maximal_update", base_width=4)
    model, plain = small.model(small.some_model()), small.model(small.some_model())
    made.start(model)
    for name, factor in (("embeddings", 1.0), ("matrices", 0.5), ("readout", 0.25), ("vectors", 1.0)):
        for one, other in zip(parameter_groups(model)[name], parameter_groups(plain)[name], strict=True):
            torch.testing.assert_close(one, factor * other)
    assert [made.rate_factor(16, power) for power in (-1.0, 0.0, 1.0)] == [0.25, 1.0, 4.0]


def test_maximal_update_needs_a_readout_of_its_own() -> None:
    with pytest.raises(UserError, match=r"^params.yaml: train\.parametrisation: maximal_update needs .*tied: false"):
        parametrisation("maximal_update").start(small.model(small.some_model(tied=True)))


# ---------------------------------------------------------------- the coordinate check


def sizes_after_training(name: str, optimizer: str, width: int, rate: float) -> dict[str, float]:
    """How much a few steps have changed what the last block and the readout say: root mean squares over one batch."""
    lowered = small.tree(
        width=width, heads=0, power=0.0, base_width=64, learning_rate=rate, parametrisation=name, optimizer=optimizer
    )
    train = TrainParams(**lowered["train"])
    _, run = begin(train, parts.choices(lowered, "train", train), small.VOCABULARY, CPU)
    first = says(run.model)
    for step in range(4):
        both = small.tokens(8, small.CONTEXT + 1, seed=step)
        next_token_loss(run.model(both[:, :-1]), both[:, 1:]).backward()
        run.optimizer.step()
        run.optimizer.zero_grad()
    return {what: (says(run.model)[what] - first[what]).square().mean().sqrt().item() for what in first}


@torch.no_grad()
def says(model: LanguageModel) -> dict[str, torch.Tensor]:
    x_BTD = model.embed(small.tokens(8, small.CONTEXT, seed=9))
    for block in model.blocks:
        x_BTD = block(x_BTD)
    return {"last block": x_BTD, "logits": model.head(x_BTD)}


def growth(name: str, optimizer: str, rate: float) -> dict[str, float]:
    """The power of the width with which each of them grows, by the narrowest and the widest model."""
    narrow, *_, wide = (sizes_after_training(name, optimizer, width, rate) for width in WIDTHS)
    return {what: log(wide[what] / narrow[what]) / log(WIDTHS[-1] / WIDTHS[0]) for what in narrow}


every_optimizer = pytest.mark.parametrize("optimizer", parts.names("optimizers"))


@every_optimizer
def test_what_steps_change_neither_grows_nor_vanishes_with_the_width_under_maximal_update(optimizer: str) -> None:
    powers = growth("maximal_update", optimizer, rate=0.001)
    assert all(abs(power) < 0.15 for power in powers.values()), powers


@every_optimizer
def test_in_the_standard_parametrisation_it_grows_so_the_check_can_fail(optimizer: str) -> None:
    powers = growth("standard", optimizer, rate=0.001)
    assert min(powers.values()) > 0.3, powers
