"""What every intervention keeps, and the law that each obeys."""

from collections.abc import Callable
from contextlib import nullcontext
from math import pi, sin
from typing import Any

import pytest
import small
import torch
from small import CONTEXT
from test_learning_rules import batch, gradients, refusal, rule_for
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from lmlab.core import registry
from lmlab.core.errors import UserError
from lmlab.core.params import Params
from lmlab.model.models.base import LanguageModel, next_token_loss
from lmlab.training.interventions.base import Intervention, blocks_above, take_gradients
from lmlab.training.interventions.surrogate_derivative import SURROGATES, SurrogateMode
from lmlab.training.learning_rules.base import LearningRule
from lmlab.training.optimizers.base import parameter_groups, split_by_rate

EVERY = registry.names("interventions")
every_intervention = pytest.mark.parametrize("name", EVERY)
EDITS = [
    "adaptive_clipping",
    "centralised_gradients",
    "global_clipping",
    "layer_clipping",
    "quantised_gradients",
]
EDITS += ["gradient_noise", "sign_gradients"]


def around(
    name: str, model: LanguageModel, rule: LearningRule | None = None, **options: Any
) -> Intervention:
    """An intervention around a rule (backprop if none is given), its options as in params.yaml but
    for those given.
    """
    choice = registry.choose(small.tree(), "interventions", name)
    changed = registry.Choice(choice.kind, name, choice.options.model_copy(update=options))
    made: Intervention = changed.build(model, rule or rule_for("backprop", model))
    return made.to(next(model.parameters()).dtype)


def neutral(name: str) -> dict[str, Any]:
    return dict(registry.find("interventions", name)[0].neutral)


def found(rule: LearningRule, model: LanguageModel, seed: int = 2, size: int = 4) -> list[Tensor]:
    """The gradients of one call."""
    model.zero_grad()
    torch.manual_seed(seed)
    rule.assign_gradients(model, *batch(size))
    return gradients(model)


def same(ours: list[Tensor], theirs: list[Tensor]) -> bool:
    return all(torch.equal(one, other) for one, other in zip(ours, theirs, strict=True))


@every_intervention
@pytest.mark.parametrize("times", [1, 2])
def test_at_its_neutral_options_it_is_backprop_bit_for_bit(name: str, times: int) -> None:
    model = small.model(small.some_model(dropout=0.2)).train()
    rule: LearningRule = rule_for("backprop", model)
    plain = found(rule, model)
    for _ in range(times):
        rule = around(name, model, rule, **neutral(name))
    assert same(found(rule, model), plain)


@pytest.mark.parametrize(
    "name", [name for name in EVERY if name not in ("identity", "checkpointing", "layer_rates")]
)
def test_with_the_options_of_params_yaml_it_does_something(name: str) -> None:
    model = small.rough(small.some_model()).train()
    assert not same(found(around(name, model), model), found(rule_for("backprop", model), model))


@every_intervention
def test_it_is_neutral_about_gradients_that_are_there(name: str) -> None:
    model = small.rough(small.some_model()).train()
    alone = found(around(name, model), model)
    model.zero_grad()
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    rule = around(name, model)
    torch.manual_seed(2)
    rule.assign_gradients(model, *batch())
    for together, own in zip(gradients(model), alone, strict=True):
        torch.testing.assert_close(together, 1 + own)


@every_intervention
def test_it_changes_nothing_of_the_model_but_its_gradients_and_returns_the_loss(name: str) -> None:
    model, untouched = (
        small.rough(small.some_model()).train(),
        small.rough(small.some_model()).train(),
    )
    before = [vars(module).keys() for module in model.modules()]
    tokens, targets = batch()
    loss = around(name, model).assign_gradients(model, tokens, targets)
    torch.testing.assert_close(loss, next_token_loss(untouched(tokens), targets).detach())
    assert not loss.requires_grad
    assert [vars(module).keys() for module in model.modules()] == before
    assert not any(
        hook
        for module in model.modules()
        for hook in (module._forward_hooks, module._forward_pre_hooks)
    )
    assert same(list(model.parameters()), list(untouched.parameters()))
    assert torch.equal(model(tokens), untouched(tokens))


@every_intervention
def test_it_goes_on_bit_for_bit_with_its_state(name: str) -> None:
    model = small.model(small.some_model()).train()
    first = around(name, model)
    for size in (2, 3):
        found(first, model, size=size)
    resumed = around(name, model)
    resumed.load_state_dict(first.state_dict())
    assert same(found(first, model), found(resumed, model))
    assert same(list(first.state_dict().values()), list(resumed.state_dict().values()))


@every_intervention
@pytest.mark.parametrize("other", registry.names("models"))
def test_it_works_with_every_model_or_refuses_it(name: str, other: str) -> None:
    choice = registry.choose(small.tree(), "models", other)
    model = small.model(choice).train()
    try:
        rule = around(name, model)
    except UserError as refused:
        assert name in str(refused) and "\n" not in str(refused)  # noqa: PT017, PT018
        return
    for _ in range(2):
        assert all(gradient.isfinite().all() for gradient in found(rule, model))


@every_intervention
def test_what_acts_acts_in_backward_back_refuses_a_rule_without_a_backward_pass(name: str) -> None:
    class Forwards(LearningRule):
        """Has no backward pass."""

        backward = False

        def assign_gradients(
            self, model: LanguageModel, tokens_BT: Tensor, targets_BT: Tensor
        ) -> Tensor:
            return torch.zeros(())

    model = small.model(small.some_model())
    around(name, model, Forwards(), **neutral(name))
    if registry.find("interventions", name)[0].acts_in_backward:
        with pytest.raises(UserError, match=f"train.intervention: {name} acts on a backward pass"):
            around(name, model, Forwards())
    else:
        around(name, model, Forwards())


@pytest.mark.parametrize("first", EDITS[:3])
def test_the_order_of_two_is_the_order_they_act_in(first: str) -> None:
    model = small.rough(small.some_model()).train()
    inner = around(first, model)
    expected = [gradient.sign() * gradient.abs().mean() for gradient in found(inner, model)]
    outer = around("sign_gradients", model, around(first, model), strength=1.0)
    for one, other in zip(found(outer, model), expected, strict=True):
        torch.testing.assert_close(one, other)


@pytest.mark.parametrize(
    ("name", "rule_name"), small.drawn(EVERY, registry.names("learning_rules"), rounds=4)
)
def test_it_stands_around_every_rule_that_has_what_it_needs(name: str, rule_name: str) -> None:
    model = small.model(small.some_model()).train()
    if refusal(rule_name, model):
        return
    rule = rule_for(rule_name, model)
    if registry.find("interventions", name)[0].acts_in_backward and not rule.backward:
        return
    own = rule.own_groups(model)
    outer = around(name, model, rule)
    assert outer.own_groups(model).keys() == own.keys()
    assert all(gradient.isfinite().all() for gradient in found(outer, model))


def edited(
    name: str, model: LanguageModel, true: list[Tensor], draws: int, **options: Any
) -> Tensor:
    """Many draws of an edit of the same gradients, of shape (draws, all numbers)."""
    rule = around(name, model, **options)
    names = [each for each, _ in model.named_parameters()]
    rows = []
    torch.manual_seed(5)
    for _ in range(draws):
        made = rule.edit(model, dict(zip(names, true, strict=True)))  # type: ignore[operator]
        rows.append(torch.cat([made[each].flatten() for each in names]))
    return torch.stack(rows)


@pytest.fixture(scope="module")
def some() -> tuple[LanguageModel, list[Tensor]]:
    """A model and its true gradients."""
    model = small.rough(small.some_model(width=8)).train()
    return model, found(rule_for("backprop", model), model)


def test_noise_has_the_gradient_for_its_mean_and_the_variance_asked_for(some: Any) -> None:
    model, true = some
    flat = torch.cat([gradient.flatten() for gradient in true])
    drawn = edited("gradient_noise", model, true, 400, sigma=0.5, fading=0.0) - flat
    assert drawn.mean().abs() < 4 * 0.5 / drawn.numel() ** 0.5
    assert drawn.std().item() == pytest.approx(0.5, rel=0.01)


def test_noise_fades_by_the_power_asked_for(some: Any) -> None:
    model, true = some
    flat = torch.cat([gradient.flatten() for gradient in true])
    drawn = edited("gradient_noise", model, true, 9, sigma=0.5, fading=1.0) - flat
    assert [row.std().item() for row in drawn[[0, 3, 8]]] == pytest.approx(
        [0.5, 0.25, 0.5 / 3], rel=0.1
    )


@pytest.mark.parametrize("levels", [1, 4])
def test_quantised_gradients_are_few_and_right_on_average(some: Any, levels: int) -> None:
    model, true = some
    flat = torch.cat([gradient.flatten() for gradient in true])
    draws = 1200
    drawn = edited("quantised_gradients", model, true, draws, levels=levels)
    step = torch.cat(
        [(gradient.abs().max() / levels).expand(gradient.numel()) for gradient in true]
    )
    places = drawn / step.clamp(min=1e-300)
    torch.testing.assert_close(places, places.round(), rtol=0, atol=1e-9)
    assert places.abs().max() <= levels + 1e-9
    off = (drawn.mean(dim=0) - flat).abs() / step.clamp(min=1e-300)
    assert off.max() < 5 * 0.5 / draws**0.5  # a rounding deviates by half a step at most


def test_signs_at_full_strength_are_what_adam_without_memory_steps_by(some: Any) -> None:
    model, true = some
    drawn = edited("sign_gradients", model, true, 1, strength=1.0)[0]
    for gradient, signed in zip(
        true, drawn.split([gradient.numel() for gradient in true]), strict=True
    ):
        parameter = nn.Parameter(torch.zeros_like(gradient))
        parameter.grad = gradient.clone()
        torch.optim.Adam([parameter], lr=1.0, betas=(0.0, 0.0), eps=0.0).step()
        moved = gradient != 0
        torch.testing.assert_close(
            -parameter.detach()[moved].sign(), signed.view_as(gradient)[moved].sign()
        )
        torch.testing.assert_close(signed.abs().max(), gradient.abs().mean())


def test_centralised_rows_have_mean_zero_and_centring_again_changes_nothing(some: Any) -> None:
    model, true = some
    names = [name for name, _ in model.named_parameters()]
    rule = around("centralised_gradients", model, strength=1.0)
    once = rule.edit(model, dict(zip(names, true, strict=True)))  # type: ignore[operator]
    twice = rule.edit(model, once)  # type: ignore[operator]
    for name, before in zip(names, true, strict=True):
        if before.ndim > 1:
            assert once[name].mean(dim=1).abs().max() < 1e-12
        else:
            assert torch.equal(once[name], before)
        torch.testing.assert_close(twice[name], once[name])


def lengths(true: list[Tensor]) -> Tensor:
    return torch.stack([gradient.norm() for gradient in true])


def test_global_clipping_gives_the_smaller_of_norm_and_limit_and_keeps_the_direction(
    some: Any,
) -> None:
    model, true = some
    flat = torch.cat([gradient.flatten() for gradient in true])
    for limit in (0.5 * flat.norm().item(), 2 * flat.norm().item()):
        clipped = edited("global_clipping", model, true, 1, limit=limit)[0]
        assert clipped.norm().item() == pytest.approx(min(flat.norm().item(), limit))
        torch.testing.assert_close(clipped / clipped.norm(), flat / flat.norm())


def test_layer_clipping_does_so_for_every_tensor(some: Any) -> None:
    model, true = some
    limit = lengths(true).median().item()
    clipped = edited("layer_clipping", model, true, 1, limit=limit)[0].split(
        [gradient.numel() for gradient in true]
    )
    torch.testing.assert_close(lengths(list(clipped)), lengths(true).clamp(max=limit))
    for one, other in zip(clipped, true, strict=True):
        torch.testing.assert_close(one * other.norm(), other.flatten() * one.norm())


def test_adaptive_clipping_keeps_each_unit_within_its_share_of_its_weights(some: Any) -> None:
    model, true = some
    clipped = edited("adaptive_clipping", model, true, 1, limit=0.01)[0].split(
        [gradient.numel() for gradient in true]
    )
    short = 0
    for (name, weight), before, after in zip(model.named_parameters(), true, clipped, strict=True):
        after = after.view_as(before)
        if name == "readout.weight":
            assert torch.equal(after, before)
            continue
        rows = (len(weight), -1) if weight.ndim > 1 else (1, -1)
        limit = 0.01 * weight.detach().reshape(rows).norm(dim=1).clamp(min=0.001)
        norms = before.reshape(rows).norm(dim=1)
        torch.testing.assert_close(after.reshape(rows).norm(dim=1), torch.minimum(norms, limit))
        short += int((norms > limit).sum())
    assert short > 0


def test_per_sample_gradients_average_to_the_batch_s_and_each_is_clipped() -> None:
    model = small.rough(small.some_model()).train()
    plain = found(rule_for("backprop", model), model)
    for one, other in zip(
        found(around("sample_clipping", model, limit=1e9), model), plain, strict=True
    ):
        torch.testing.assert_close(one, other)
    limit = 0.1 * torch.cat([gradient.flatten() for gradient in plain]).norm().item()
    expected = [torch.zeros_like(gradient) for gradient in plain]
    tokens, targets = batch()
    for at in range(len(tokens)):
        model.zero_grad()
        rule_for("backprop", model).assign_gradients(
            model, tokens[at : at + 1], targets[at : at + 1]
        )
        alone = gradients(model)
        length = torch.cat([gradient.flatten() for gradient in alone]).norm()
        for total, gradient in zip(expected, alone, strict=True):
            total += gradient * min(1.0, limit / length.item()) / len(tokens)
    for one, other in zip(
        found(around("sample_clipping", model, limit=limit), model), expected, strict=True
    ):
        torch.testing.assert_close(one, other)


def test_delayed_gradients_come_in_order_and_at_first_not_at_all() -> None:
    model = small.rough(small.some_model()).train()
    rule, plain = around("delayed_gradients", model, delay=2), rule_for("backprop", model)
    true = [found(plain, model, size=size) for size in (1, 2, 3, 4, 5)]
    for call, size in enumerate((1, 2, 3, 4, 5)):
        model.zero_grad()
        rule.assign_gradients(model, *batch(size))
        if call < 2:
            assert all(parameter.grad is None for parameter in model.parameters())
        else:
            assert same(gradients(model), true[call - 2])


@pytest.mark.parametrize("delay", [0, 1, 3])
def test_on_a_quadratic_a_delay_is_stable_up_to_the_known_rate(delay: int) -> None:
    """Descent on x² / 2 by gradients `delay` steps old shrinks up to the rate 2 sin(pi / (2 (2
    delay + 1))), then grows.
    """

    class Quadratic(LearningRule):
        """The gradient of x² / 2 is x."""

        backward = True

        def assign_gradients(
            self, model: LanguageModel, tokens_BT: Tensor, targets_BT: Tensor
        ) -> Tensor:
            for parameter in model.parameters():
                parameter.grad = parameter.detach().clone()
            return torch.zeros(())

    edge = 2 * sin(pi / (2 * (2 * delay + 1)))
    ends = []
    for rate in (0.95 * edge, 1.05 * edge):
        model = small.rough(small.some_model())
        rule = around("delayed_gradients", model, Quadratic(), delay=delay)
        start = sum(float(parameter.detach().square().sum()) for parameter in model.parameters())
        for _ in range(300):
            rule.assign_gradients(model, *batch(1))
            torch.optim.SGD(model.parameters(), lr=rate).step()
            model.zero_grad()
        ends.append(
            sum(float(parameter.detach().square().sum()) for parameter in model.parameters())
            / start
        )
    assert ends[0] < 0.1
    assert ends[1] > 10


@pytest.mark.parametrize("blocks", [1, 2])
def test_stop_gradient_leaves_nothing_below_and_everything_above_bit_for_bit(blocks: int) -> None:
    model = small.rough(small.some_model()).train()
    plain = dict(
        zip(dict(model.named_parameters()), found(rule_for("backprop", model), model), strict=True)
    )
    model.zero_grad()
    around("stop_gradient", model, blocks=blocks).assign_gradients(model, *batch())
    below = ("embedding.", *(f"blocks.{number}." for number in range(blocks)))
    for name, parameter in model.named_parameters():
        if name.startswith(below):
            assert parameter.grad is None, name
        else:
            assert parameter.grad is not None
            assert torch.equal(parameter.grad, plain[name]), name


def test_more_blocks_than_there_are_cannot_be_stopped_below() -> None:
    with pytest.raises(
        UserError, match=r"stop_gradient\.blocks is 3, which leaves nothing .*set it to 2 or less"
    ):
        around("stop_gradient", small.model(small.some_model()), blocks=3)


def test_dropping_tokens_is_unbiased_and_keeps_the_loss() -> None:
    model = small.rough(small.some_model(width=8)).train()
    plain = torch.cat(
        [gradient.flatten() for gradient in found(rule_for("backprop", model), model)]
    )
    rule = around("token_dropping", model, kept=0.5)
    draws = 300
    drawn = torch.stack(
        [torch.cat([g.flatten() for g in found(rule, model, seed=seed)]) for seed in range(draws)]
    )
    error, spread = drawn.mean(dim=0) - plain, drawn.std(dim=0)
    assert (error.abs() <= 5.5 * spread / draws**0.5 + 1e-12).all()
    assert (error / (spread / draws**0.5 + 1e-300))[spread > 1e-9].std() == pytest.approx(
        1, abs=0.35
    )


@pytest.mark.parametrize("model_name", ["transformer", "lstm"])
def test_a_surrogate_equal_to_the_function_is_backprop_and_the_values_never_change(
    model_name: str,
) -> None:
    model = small.rough(registry.choose(small.tree(), "models", model_name)).train()
    plain = found(rule_for("backprop", model), model)
    for surrogate in ("identity", "box", "fast_sigmoid"):
        rule = around("surrogate_derivative", model, surrogate=surrogate)
        loss = rule.assign_gradients(model, *batch())
        assert loss == rule_for("backprop", model).assign_gradients(model, *batch())
        assert not same(found(rule, model), plain)


@pytest.mark.parametrize(
    ("surrogate", "slope"),
    [
        ("identity", lambda x: torch.ones_like(x)),
        ("box", lambda x: (x.abs() <= 1).double()),
        ("fast_sigmoid", lambda x: (1 + x.abs()) ** -2.0),
    ],
)
@pytest.mark.parametrize(
    "function", [torch.relu, torch.tanh, nn.functional.gelu, nn.functional.silu, torch.sigmoid]
)
def test_the_slope_is_the_surrogates(
    function: Callable[[Tensor], Tensor], surrogate: str, slope: Callable[[Tensor], Tensor]
) -> None:
    x = torch.linspace(-3, 3, 61, dtype=torch.float64, requires_grad=True)
    (true,) = torch.autograd.grad(function(x).sum(), x)
    for strength in (0.25, 1.0):
        with SurrogateMode(SURROGATES[surrogate], strength):
            y = function(x)
        assert torch.equal(y, function(x))
        (found_slope,) = torch.autograd.grad(y.sum(), x)
        torch.testing.assert_close(
            found_slope, (1 - strength) * true + strength * slope(x.detach())
        )


UNSEEN = {nn.functional.glu, nn.functional.selu, nn.functional.leaky_relu, nn.functional.mish}
UNSEEN |= {
    nn.functional.hardtanh,
    nn.functional.hardsigmoid,
    nn.functional.hardswish,
    nn.functional.relu6,
}
"""Not elu: linear attention's is no activation but what makes its kernel, and the docstring does
not name it.
"""


@pytest.mark.parametrize("choice", small.variants("models"), ids=small.title)
def test_no_model_has_an_activation_that_a_surrogate_would_not_see(choice: registry.Choice) -> None:
    """Such as a gate inside torch's `glu`: as one call it is neither an activation nor squashed."""
    called = set()

    class Noting(TorchFunctionMode):
        """Notes what is called."""

        def __torch_function__(
            self, func: Any, types: Any, args: Any = (), kwargs: Any = None
        ) -> Any:
            called.add(func)
            return func(*args, **(kwargs or {}))

    with Noting():
        small.model(choice)(batch()[0])
    assert called
    assert not called & UNSEEN


def test_a_convolutions_gate_has_the_surrogates_slope() -> None:
    model = small.rough(registry.choose(small.tree(), "models", "convolution"))
    block = model.blocks[0]
    x_BTD = model.embed(batch()[0]).detach()
    calls: list[tuple[Tensor, Tensor]] = []
    sigmoid = Tensor.sigmoid

    class Gate(TorchFunctionMode):
        """Keeps what goes into the gate, and what comes out of it."""

        def __torch_function__(
            self, func: Any, types: Any, args: Any = (), kwargs: Any = None
        ) -> Any:
            result = func(*args, **(kwargs or {}))
            if func in (torch.sigmoid, sigmoid):
                calls.append((args[0], result))
            return result

    for surrogate in (False, True):
        calls.clear()
        with SurrogateMode(SURROGATES["identity"], 1.0) if surrogate else nullcontext(), Gate():
            y_BTD = block(x_BTD)
        [(before, gate)] = calls
        slope, at_gate = torch.autograd.grad(y_BTD.sum(), (before, gate))
        expected = at_gate if surrogate else at_gate * gate * (1 - gate)
        torch.testing.assert_close(slope, expected)


def test_a_model_without_activations_is_refused_a_surrogate() -> None:
    table = small.model(registry.choose(small.tree(), "models", "n_gram_table"))
    with pytest.raises(UserError, match="finds no activation function"):
        around("surrogate_derivative", table)


@pytest.mark.parametrize("name", ["transformer", "hybrid", "rwkv"])
@pytest.mark.parametrize("dropout", [0.0, 0.3])
def test_checkpointing_is_bitwise_backprop_and_keeps_less(name: str, dropout: float) -> None:
    model = small.model(
        registry.choose(small.tree(dropout=dropout), "models", name), context=CONTEXT
    ).train()
    kept: list[int] = []

    def size(tensor: Tensor) -> Tensor:
        kept[-1] += tensor.nbytes
        return tensor

    results = []
    for rule in (rule_for("backprop", model), around("checkpointing", model)):
        kept.append(0)
        with torch.autograd.graph.saved_tensors_hooks(size, lambda tensor: tensor):
            tokens, targets = batch()
            torch.manual_seed(2)
            model.zero_grad()
            rule.assign_gradients(model, tokens, targets)
        results.append(gradients(model))
    assert same(*results)
    model.zero_grad()
    assert same(
        found(around("checkpointing", model, blocks=1), model),
        found(rule_for("backprop", model), model),
    )


@pytest.mark.parametrize(
    "name",
    [
        name
        for name in registry.names("learning_rules")
        if registry.find("learning_rules", name)[0].backward
    ],
)
def test_checkpointing_changes_no_bit_of_any_rule_that_it_may_stand_around(name: str) -> None:
    model = small.model(small.some_model(dropout=0.2)).train()
    assert same(
        found(around("checkpointing", model, rule_for(name, model)), model),
        found(rule_for(name, model), model),
    )


def test_layer_rates_multiply_from_the_top_down() -> None:
    model = small.model(small.some_model())
    rule = around("layer_rates", model, factor=0.5)
    for name, _ in model.named_parameters():
        expected = (
            0.25 if name.startswith("embedding") else 0.5 if name.startswith("blocks.0") else 1.0
        )
        assert rule.rate_factor(name) == expected, name
    stacked = around("layer_rates", model, rule, factor=0.1)
    assert stacked.rate_factor("blocks.0.attention.out.weight") == pytest.approx(0.05)


@pytest.mark.parametrize("name", registry.names("models"))
def test_what_embeds_the_tokens_is_below_all_blocks(name: str) -> None:
    heights = blocks_above(small.model(registry.choose(small.tree(), "models", name)))
    for parameter, above in heights.items():
        if "embedding" in parameter:
            assert above == max(heights.values())
        if parameter.split(".")[0] in ("final_norm", "readout"):
            assert above == 0


@pytest.mark.parametrize("name", registry.names("optimizers"))
def test_split_groups_step_as_one_at_factor_one_and_by_the_factor_otherwise(name: str) -> None:
    def step(factor: float | None) -> list[Tensor]:
        model = small.model(small.some_model())
        optimizer = registry.choose(small.tree(weight_decay=0.0), "optimizers", name).build(
            parameter_groups(model)
        )
        if factor is not None:
            split_by_rate(
                optimizer, {p: factor if i % 2 else 1.0 for i, p in enumerate(model.parameters())}
            )
        before = [parameter.detach().clone() for parameter in model.parameters()]
        found(rule_for("backprop", model), model)
        optimizer.step()
        return [
            parameter.detach() - start
            for parameter, start in zip(model.parameters(), before, strict=True)
        ]

    plain, one, half = step(None), step(1.0), step(0.5)
    for number, (true, unsplit, split) in enumerate(zip(plain, one, half, strict=True)):
        assert torch.equal(unsplit, true)
        torch.testing.assert_close(split, true * (0.5 if number % 2 else 1.0), rtol=1e-3, atol=1e-6)


def test_gradients_taken_are_gone_and_tied_ones_have_one_name() -> None:
    model = small.model(small.some_model(tied=True))
    rule_for("backprop", model).assign_gradients(model, *batch())
    taken = take_gradients(model)
    assert "readout.weight" not in taken
    assert all(parameter.grad is None for parameter in model.parameters())
    assert issubclass(registry.find("interventions", "identity")[1], Params)
