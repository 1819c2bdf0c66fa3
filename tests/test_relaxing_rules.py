"""Identities of the learning rules that relax activations or teach each block alone."""

import itertools

import pytest
import small
import torch
from test_learning_rules import assign, batch, cosine, gradients, refusal, rule_for, true_gradients
from torch import Tensor, nn

from lmlab.core import registry
from lmlab.model.models.base import LanguageModel, next_token_loss
from lmlab.training.learning_rules._detached_blocks import DetachedBlocks
from lmlab.training.learning_rules.forward_forward import contrast, corrupt, goodness
from lmlab.training.learning_rules.strict_predictive_coding import energy
from lmlab.training.learning_rules.target_propagation import targets
from lmlab.training.learning_rules.three_factor_hebbian import over_later


def close(ours: list[Tensor], theirs: list[Tensor], relative: float = 1e-12) -> bool:
    """Whether two sets of gradients are the same to rounding, each measured by the largest of the
    second's numbers.
    """
    return all(
        (one - other).abs().max() <= relative * other.abs().max()
        for one, other in zip(ours, theirs, strict=True)
    )


def unit_values(model: LanguageModel, tokens_BT: Tensor) -> list[Tensor]:
    """The outputs of the embedding and of every block, as leaves."""
    return DetachedBlocks(model, tokens_BT, full_precision=True).leaves


def of_blocks(model: LanguageModel) -> list[list[Tensor]]:
    return [gradients(block) for block in model.blocks]


def moved(model: nn.Module, seed: int = 0) -> None:
    """Other weights."""
    torch.manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter))


def with_dropout(depth: int = 2) -> LanguageModel:
    return small.rough(small.some_model(dropout=0.3, depth=depth)).train()


EVERY_SHAPE = [
    choice
    for choice in small.variants("models")
    if choice.name in ("transformer", "hybrid", "lstm", "n_gram_table")
]


# ------------------------------------------------------------------ predictive coding


@pytest.mark.parametrize("depth", [1, 2, 5])
def test_fixed_predictions_with_step_1_and_a_sweep_for_each_unit_are_backprop(depth: int) -> None:
    model = small.rough(small.some_model(depth=depth))
    true = true_gradients(model, *batch())
    assign("predictive_coding", model, *batch(), sweeps=depth + 1, step=1.0)
    assert close(gradients(model), true)
    model.zero_grad()
    assign("predictive_coding", model, *batch(), sweeps=depth + 4, step=1.0)
    assert close(gradients(model), true), "and no more changes after that"


@pytest.mark.parametrize("choice", EVERY_SHAPE, ids=small.title)
def test_fixed_predictions_are_backprop_in_models_of_every_shape(choice: registry.Choice) -> None:
    model = small.rough(choice).train()  # in training a mixture adds its penalty
    true = true_gradients(model, *batch())
    assign("predictive_coding", model, *batch())
    assert close(gradients(model), true, 1e-10)


def test_fixed_predictions_are_backprop_through_the_same_dropped_units() -> None:
    model = with_dropout()
    true = true_gradients(model, *batch())
    assign("predictive_coding", model, *batch())
    assert close(gradients(model), true)


def test_with_fewer_sweeps_errors_have_not_reached_the_lower_units() -> None:
    depth = 4
    model = small.rough(small.some_model(depth=depth))
    assign("backprop", model, *batch())
    true = of_blocks(model)
    for sweeps in range(1, depth + 1):
        model.zero_grad()
        assign("predictive_coding", model, *batch(), sweeps=sweeps, step=1.0)
        found = of_blocks(model)
        for number in range(depth):
            if depth - number <= sweeps:
                assert close(found[number], true[number])
            else:
                assert not any(gradient.any() for gradient in found[number])
        embedding = model.embed.__self__.embedding.tokens.weight.grad
        assert not embedding.any()


def test_smaller_steps_come_near_backprop_as_sweeps_go_on() -> None:
    model = small.rough(small.some_model())
    true = true_gradients(model, *batch())
    amiss = []
    for sweeps in (5, 20, 80):
        model.zero_grad()
        assign("predictive_coding", model, *batch(), sweeps=sweeps, step=0.5)
        amiss.append(
            max(
                float((one - other).abs().max())
                for one, other in zip(gradients(model), true, strict=True)
            )
        )
    assert amiss[0] > 10 * amiss[1] > 100 * amiss[2]


def settled(model: LanguageModel, sweeps: int, step: float, pull: float) -> list[Tensor]:
    """The values after some sweeps down the slope of the energy, found by hand."""
    values = unit_values(model, batch()[0])
    for _ in range(sweeps):
        slopes = torch.autograd.grad(energy(model, *batch(), values, pull), values)
        scale = step * pull * batch()[1].numel()
        values = [
            (value - scale * slope).detach().requires_grad_()
            for value, slope in zip(values, slopes, strict=True)
        ]
    return values


def test_the_energy_is_the_loss_at_first_and_never_rises_in_small_steps() -> None:
    model, pull = small.rough(small.some_model(depth=3)), 0.5
    energies = [
        energy(model, *batch(), settled(model, sweeps, 1e-3, pull), pull).item()
        for sweeps in range(8)
    ]
    assert energies[0] == pytest.approx(
        next_token_loss(model(batch()[0]), batch()[1]).item(), rel=1e-12
    )
    assert all(after < before for before, after in itertools.pairwise(energies))


def test_strict_predictive_coding_is_the_energys_slope_for_the_weights_at_the_settled_values() -> (
    None
):
    model = small.rough(small.some_model())
    values = settled(model, 3, 0.02, 0.5)
    torch.autograd.backward(energy(model, *batch(), values, 0.5))
    by_hand = gradients(model)
    model.zero_grad()
    assign("strict_predictive_coding", model, *batch(), sweeps=3, step=0.02, pull=0.5)
    assert close(gradients(model), by_hand)


def gentle(depth: int = 2) -> LanguageModel:
    """A model whose blocks are not steep, so that values settle soon."""
    model = small.rough(small.some_model(depth=depth))
    with torch.no_grad():
        for parameter in model.blocks.parameters():
            parameter.mul_(0.2)
        for parameter in model.embed.__self__.embedding.parameters():
            parameter.mul_(4)
    return model


def test_strict_predictive_coding_tends_to_backprop_as_the_pull_becomes_small() -> None:
    model = gentle()
    true = true_gradients(model, *batch())
    amiss = []
    for pull in (1e-1, 1e-2, 1e-3):
        model.zero_grad()
        assign("strict_predictive_coding", model, *batch(), sweeps=150, step=0.3, pull=pull)
        found = gradients(model)
        error = torch.cat(
            [(one - other).flatten() for one, other in zip(found, true, strict=True)]
        ).norm()
        amiss.append(float(error / torch.cat([other.flatten() for other in true]).norm()))
    assert amiss[0] > 1e-2, "with more pull it is another rule"
    assert amiss[1] == pytest.approx(10 * amiss[2], rel=0.15), "of first order in the pull"
    assert amiss[2] < 2e-3


def test_strict_predictive_coding_of_few_small_steps_has_backprops_direction_in_each_unit() -> None:
    model = gentle(depth=3)
    assign("backprop", model, *batch())
    true, step = of_blocks(model), 1e-3
    model.zero_grad()
    assign("strict_predictive_coding", model, *batch(), sweeps=0, step=step, pull=1e-2)
    ways = [
        4,
        6,
        4,
    ]  # in which 4 sweeps can hand the error down to the last block, the one below it, the first
    for distance, (ours, theirs) in enumerate(
        zip(reversed(of_blocks(model)), reversed(true), strict=True), start=1
    ):
        scaled = [gradient / (ways[distance - 1] * step**distance) for gradient in ours]
        assert close(scaled, theirs, relative=0.02)


def test_sweeps_see_the_same_dropped_units_each_time() -> None:
    """If they did not, values would be pulled to other predictions than those they started at:
    errors without a loss.
    """
    model = with_dropout()
    with torch.no_grad():
        model.readout.weight.zero_()  # so no loss pulls
    assign("strict_predictive_coding", model, *batch(), sweeps=3)
    assert not any(gradient.any() for block in of_blocks(model) for gradient in block)


# ------------------------------------------------------------------ target propagation


class Map(nn.Linear):
    """A linear block, whose output may be handed to later tokens."""

    def __init__(self, width: int, later: int) -> None:
        super().__init__(width, width, bias=False)
        self.later = later

    def forward(self, x_BTD: Tensor, cache: object = None) -> Tensor:
        return nn.functional.pad(super().forward(x_BTD), (0, 0, self.later, 0))[:, : x_BTD.shape[1]]


class Chain(LanguageModel):
    """A linear map for each block, and no more."""

    def __init__(self, depth: int = 3, width: int = 6, later: int = 0) -> None:
        super().__init__()
        self.vocabulary_size, self.context, self.width = small.VOCABULARY, small.CONTEXT, width
        self.embedding = nn.Embedding(self.vocabulary_size, width)
        self.blocks = nn.ModuleList(Map(width, later) for _ in range(depth))
        self.readout = nn.Linear(width, self.vocabulary_size, bias=False)

    def embed(self, tokens_BT: Tensor, cache: object = None) -> Tensor:
        return self.embedding(tokens_BT)

    def head(self, x_BTD: Tensor) -> Tensor:
        return self.readout(x_BTD)


def chain(depth: int = 3, later: int = 0) -> Chain:
    torch.manual_seed(0)
    return Chain(depth, later=later).double()


def test_with_exact_inverses_of_linear_blocks_every_target_is_met_by_the_one_below() -> None:
    model = chain()
    values = unit_values(model, batch()[0])
    top = values[-1] + torch.randn_like(values[-1])
    inverses = [lambda y, w=block.weight: y @ torch.linalg.inv(w).T for block in model.blocks]
    found = targets(inverses, values, top)
    for block, below, above in zip(model.blocks, found[:-1], found[1:], strict=True):
        torch.testing.assert_close(block(below), above, rtol=0, atol=1e-12)
    exact = top
    for inverse in reversed(inverses):
        exact = inverse(exact)
    torch.testing.assert_close(found[0], exact, rtol=0, atol=1e-11)


def test_a_target_that_is_the_output_makes_all_below_theirs_whatever_the_inverses_are() -> None:
    model = small.rough(small.some_model())
    rule = rule_for("target_propagation", model)
    moved(rule)
    values = unit_values(model, batch()[0])
    for target, value in zip(targets(list(rule.inverses), values, values[-1]), values, strict=True):
        assert torch.equal(target, value)
    with torch.no_grad():
        model.readout.weight.zero_()  # so that the loss has no slope
    rule.assign_gradients(model, *batch())
    assert not any(gradient.any() for block in of_blocks(model) for gradient in block)


def test_inverses_that_are_the_identity_hand_the_same_signal_to_every_unit() -> None:
    model = small.rough(small.some_model(depth=3))
    blocks = DetachedBlocks(model, batch()[0], full_precision=True)
    outputs, values = blocks.outputs, blocks.leaves
    torch.autograd.backward(next_token_loss(model.head(values[-1]), batch()[1]))
    slope = values[-1].grad
    torch.autograd.backward(outputs, [slope] * len(outputs))
    by_hand = gradients(model)
    model.zero_grad()
    assign("target_propagation", model, *batch(), step=0.1)
    assert close(gradients(model), by_hand, 1e-10)


def test_the_step_matters_only_where_inverses_bend() -> None:
    def found(step: float, trained: bool) -> list[Tensor]:
        model = small.rough(small.some_model())
        rule = rule_for("target_propagation", model, step=step)
        if trained:
            moved(rule)
        rule.assign_gradients(model, *batch())
        return [gradient for block in of_blocks(model) for gradient in block]

    assert close(found(0.1, False), found(0.001, False), 1e-9)
    assert not close(found(0.1, True), found(0.001, True), 1e-2)


def test_inverses_learn_to_undo_their_blocks() -> None:
    model = small.rough(small.some_model())
    rule = rule_for("target_propagation", model)
    values = unit_values(model, batch()[0])

    def amiss() -> list[float]:
        pairs = zip(rule.inverses, values[1:], values, strict=False)
        return [(inverse(above) - below).square().mean().item() for inverse, above, below in pairs]

    before, optimizer = amiss(), torch.optim.Adam(rule.parameters(), lr=0.01)
    for _ in range(100):
        rule.assign_gradients(model, *batch())
        optimizer.step()
        optimizer.zero_grad()
    assert all(after < 0.5 * first for after, first in zip(amiss(), before, strict=True))


def test_target_propagation_refuses_a_stream_that_is_wider_than_the_model() -> None:
    transformer = small.some_model()
    wide = small.with_inner(
        transformer, residual=registry.choose(small.tree(), "layers.residual", "hyper")
    )
    assert "train.learning_rule: target_propagation" in refusal(
        "target_propagation", small.model(wide)
    )


# ------------------------------------------------------------------ three factors


@pytest.mark.parametrize("noise", [0.0, 0.1])
def test_the_readout_learns_by_the_delta_rule_which_is_its_exact_gradient(noise: float) -> None:
    model = small.rough(small.some_model())
    true = dict(
        zip(
            [name for name, _ in model.named_parameters()],
            true_gradients(model, *batch()),
            strict=True,
        )
    )
    assign("three_factor_hebbian", model, *batch(), noise=noise)
    assert close([model.readout.weight.grad], [true["readout.weight"]])
    tokens, targets = batch()
    x_BTD = model.final_norm(unit_values(model, tokens)[-1])
    errors_BTV = model(tokens).softmax(dim=-1) - nn.functional.one_hot(targets, small.VOCABULARY)
    assert close(
        [model.readout.weight.grad],
        [torch.einsum("btv,btd->vd", errors_BTV, x_BTD) / targets.numel()],
    )


@pytest.mark.parametrize("trace", [0.0, 0.7, 1.0])
def test_a_modulator_filtered_backward_in_time_is_the_same_as_an_eligibility_trace(
    trace: float,
) -> None:
    torch.manual_seed(0)
    pre_BTI, post_BTE, modulator_BT = (
        torch.randn(3, 7, *rest).double() for rest in ((4,), (5,), ())
    )
    explicit_EI, trace_BEI = torch.zeros(5, 4).double(), torch.zeros(3, 5, 4).double()
    for time in range(7):
        trace_BEI = trace * trace_BEI + post_BTE[:, time, :, None] * pre_BTI[:, time, None]
        explicit_EI += (modulator_BT[:, time, None, None] * trace_BEI).sum(dim=0)
    filtered_BT = over_later(modulator_BT, trace)
    torch.testing.assert_close(
        torch.einsum("bt,bte,bti->ei", filtered_BT, post_BTE, pre_BTI),
        explicit_EI,
        rtol=0,
        atol=1e-12,
    )


def test_without_noise_a_map_learns_the_covariance_of_output_and_loss_times_its_input() -> None:
    model = chain()
    tokens, targets = batch()
    assign("three_factor_hebbian", model, tokens, targets, noise=0.0, trace=0.0)
    values = unit_values(model, tokens)
    losses_BT = nn.functional.cross_entropy(model(tokens).mT, targets, reduction="none")
    for block, x_BTD, y_BTD in zip(model.blocks, values[:-1], values[1:], strict=True):
        factors = (losses_BT - losses_BT.mean(), y_BTD - y_BTD.mean(dim=(0, 1)), x_BTD)
        assert close(
            [block.weight.grad], [torch.einsum("bt,bte,bti->ei", *factors) / targets.numel()]
        )


def likeness_of_the_mean(model: LanguageModel, tries: int, trace: float) -> float:
    """Of the mean over tries and the true gradient, but for the readout's, which is exact."""
    true = true_gradients(model, *batch())
    rule = rule_for("three_factor_hebbian", model, noise=1e-3, trace=trace)
    torch.manual_seed(0)
    for _ in range(tries):
        rule.assign_gradients(model, *batch())
    return cosine(gradients(model)[:-1], true[:-1])


def test_with_noise_the_mean_over_tries_tends_to_the_true_gradient() -> None:
    """Where no token sees another, and the noise is small."""
    few, many = (likeness_of_the_mean(chain(depth=2), tries, trace=0.0) for tries in (10, 1000))
    assert few + 0.1 < many
    assert many > 0.95


def test_what_a_token_does_to_the_next_one_is_found_with_a_trace_and_not_without() -> None:
    without, kept = (
        likeness_of_the_mean(chain(depth=1, later=1), 1000, trace) for trace in (0.0, 1.0)
    )
    assert abs(without) < 0.3
    assert kept > 0.8


def test_noise_does_not_change_which_units_are_dropped() -> None:
    """Else the loss would change by far more than the noise makes it."""
    model = with_dropout()
    assign("three_factor_hebbian", model, *batch(), noise=1e-6)
    assert max(gradient.abs().max() for gradient in gradients(model)) < 1e3


def test_three_factors_teach_maps_that_see_whole_windows_and_nothing_else() -> None:
    model = small.model(registry.choose(small.tree(), "models", "lstm"))
    assign("three_factor_hebbian", model, *batch())
    taught = {name for name, parameter in model.named_parameters() if parameter.grad is not None}
    assert {"embedding.weight", "blocks.0.recurrence.from_input.weight", "readout.weight"} <= taught
    assert not {name for name in taught if "norm" in name or "from_last" in name}


# ------------------------------------------------------------------ forward-forward


def found_by(name: str, model: LanguageModel, **changes: float) -> list[list[Tensor]]:
    model.zero_grad()
    assign(name, model, *batch(), **changes)
    return of_blocks(model)


def test_in_forward_forward_no_block_learns_of_what_is_above_it() -> None:
    model = small.rough(small.some_model(depth=3))
    before, embedding = (
        found_by("forward_forward", model),
        gradients(model.embed.__self__.embedding),
    )
    moved(model.blocks[1])
    moved(model.readout)
    after = found_by("forward_forward", model)
    assert all(torch.equal(one, other) for one, other in zip(before[0], after[0], strict=True))
    assert all(
        torch.equal(one, other)
        for one, other in zip(embedding, gradients(model.embed.__self__.embedding), strict=True)
    )
    for number in (1, 2):
        assert not any(
            torch.equal(one, other)
            for one, other in zip(before[number], after[number], strict=True)
        )


def test_in_forward_forward_the_loss_of_the_next_token_teaches_the_head_exactly_and_no_block() -> (
    None
):
    model = small.rough(small.some_model())
    true = dict(
        zip(
            [name for name, _ in model.named_parameters()],
            true_gradients(model, *batch()),
            strict=True,
        )
    )
    tokens, targets = batch()
    assign("forward_forward", model, tokens, targets)
    assert close([model.readout.weight.grad], [true["readout.weight"]])
    before = of_blocks(model)
    model.zero_grad()
    assign("forward_forward", model, tokens, targets.flip(0))
    for one, other in zip(before, of_blocks(model), strict=True):
        assert all(torch.equal(*pair) for pair in zip(one, other, strict=True))


def test_swapping_real_and_corrupted_text_turns_the_local_loss_round() -> None:
    torch.manual_seed(0)
    one, other = (torch.rand(20).double().requires_grad_() for _ in range(2))
    straight, swapped = contrast(one, other, 0.5), contrast(other, one, 0.5)
    torch.testing.assert_close(swapped - straight, one.mean() - other.mean())
    for loss, positive, negative in ((straight, one, other), (swapped, other, one)):
        up, down = torch.autograd.grad(loss, (positive, negative))
        assert (up < 0).all()
        assert (down > 0).all()


def test_corrupted_text_has_about_the_wanted_share_of_other_tokens_of_the_batch() -> None:
    torch.manual_seed(0)
    tokens = 2 * small.tokens(40, 50)
    other = corrupt(tokens, 0.3)
    assert (other != tokens).double().mean() == pytest.approx(
        0.3 * (1 - 1 / small.VOCABULARY), abs=0.03
    )
    assert set(other.flatten().tolist()) <= set(tokens.flatten().tolist())


def test_goodness_learns_to_tell_real_text_from_corrupted() -> None:
    model = small.model(small.some_model())
    rule = rule_for("forward_forward", model)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    for _ in range(150):
        rule.assign_gradients(model, *batch())
        optimizer.step()
        optimizer.zero_grad()
    other = corrupt(batch()[0], 0.3)
    reals, falses = unit_values(model, batch()[0]), unit_values(model, other)
    for number in range(len(model.blocks)):
        of_real = goodness(reals[number], reals[number + 1]).mean()
        of_false = goodness(falses[number], falses[number + 1])[other != batch()[0]].mean()
        assert of_real > 1.2 * of_false


# ------------------------------------------------------------------ NoProp


def test_in_noprop_no_block_learns_of_any_other() -> None:
    model = small.rough(small.some_model(depth=3))
    before = found_by("noprop", model)
    for other in range(3):
        moved(model.blocks[other])
        after = found_by("noprop", model)
        for number in range(3):
            same = [torch.equal(*pair) for pair in zip(before[number], after[number], strict=True)]
            assert all(same) if number != other else not any(same)
        before = after


def test_noprop_with_one_block_is_backprop_bit_for_bit() -> None:
    model = small.rough(small.some_model(depth=1))
    true = true_gradients(model, *batch())
    assign("noprop", model, *batch())
    assert all(torch.equal(*pair) for pair in zip(gradients(model), true, strict=True))


def test_in_noprop_the_head_learns_from_the_last_block_alone() -> None:
    model = small.rough(small.some_model(depth=3))
    found_by("noprop", model)
    before = model.readout.weight.grad.clone()
    moved(model.blocks[0])
    moved(model.blocks[1])
    found_by("noprop", model)
    assert torch.equal(model.readout.weight.grad, before)
    moved(model.blocks[2])
    found_by("noprop", model)
    assert not torch.equal(model.readout.weight.grad, before)


def test_in_noprop_blocks_above_the_first_see_the_answer_and_noise_and_teach_no_embedding() -> None:
    model = small.rough(small.some_model())
    plain, embedding = (
        found_by("noprop", model, label=0.0, noise=0.0),
        gradients(model.embed.__self__.embedding),
    )
    for changes in ({"label": 1.0, "noise": 0.0}, {"label": 0.0, "noise": 1.0}):
        other = found_by("noprop", model, **changes)
        assert all(torch.equal(*pair) for pair in zip(plain[0], other[0], strict=True))
        assert not any(torch.equal(*pair) for pair in zip(plain[1], other[1], strict=True))
        assert torch.equal(gradients(model.embed.__self__.embedding)[0], embedding[0])
    x_BTD = model.embed(batch()[0])
    logits = model.head(model.blocks[0](x_BTD))
    alone = torch.autograd.grad(
        next_token_loss(logits, batch()[1]), list(model.blocks[0].parameters())
    )
    assert close(plain[0], list(alone)), "and the first is as a model of one block, its head apart"


@pytest.mark.parametrize("name", ["forward_forward", "noprop"])
@pytest.mark.parametrize("wide", ["hyper", "value"])
def test_a_stream_that_is_wider_than_the_model_is_refused(name: str, wide: str) -> None:
    residual = registry.choose(small.tree(), "layers.residual", wide)
    assert f"train.learning_rule: {name}" in refusal(
        name, small.model(small.with_inner(small.some_model(), residual=residual))
    )
    assert f"train.learning_rule: {name}" in refusal(
        name, small.model(registry.choose(small.tree(), "models", "n_gram_table"))
    )
