"""Learning rules that perturb weights or nodes: exact along given noise, right on average, and
without a backward pass.
"""

from typing import Any

import pytest
import small
import torch
from test_learning_rules import assign, batch, cosine, gradients, true_gradients
from torch import Tensor

from lmlab.core import registry
from lmlab.core.registry import Choice
from lmlab.model import noise
from lmlab.model.models.base import LanguageModel, next_token_loss
from lmlab.training.learning_rules import _node_noise as node_noise
from lmlab.training.learning_rules import _weight_noise as weight_noise
from lmlab.training.learning_rules._node_noise import NodeSample

RULES = [
    "activity_forward_gradient",
    "evolution_strategies",
    "forward_gradient",
    "low_rank_evolution",
    "node_perturbation",
    "spsa",
]
CPU = torch.device("cpu")


def few_weights() -> LanguageModel:
    """A bigram table over three tokens: 9 weights at work and 3 that add to all of them."""
    return small.rough(
        registry.choose(small.tree(order=2), "models", "n_gram_table"), vocabulary_size=3
    )


def few_tokens() -> tuple[Tensor, Tensor]:
    both = small.tokens(2, small.CONTEXT + 1, vocabulary_size=3)
    return both[:, :-1].contiguous(), both[:, 1:].contiguous()


def flat(found: list[Tensor]) -> Tensor:
    return torch.cat([gradient.flatten() for gradient in found])


def estimate(
    name: str, model: LanguageModel, *of_batch: Tensor, seed: int = 2, **changes: Any
) -> Tensor:
    """A rule's gradients as one vector, its chance from the seed, the model's left empty."""
    rule = registry.choose(small.tree(**changes), "learning_rules", name).build(model)
    torch.manual_seed(seed)
    rule.assign_gradients(model, *of_batch)
    found = flat(gradients(model))
    model.zero_grad()
    return found


@pytest.mark.parametrize("name", RULES)
def test_no_tensor_is_kept_for_a_backward_pass(name: str) -> None:
    def refuse(_: Tensor) -> None:
        raise AssertionError("a tensor was saved")

    model = small.model(small.some_model()).train()
    with torch.autograd.graph.saved_tensors_hooks(refuse, lambda _: torch.empty(0)):
        assign(name, model, *batch())
        with pytest.raises(AssertionError, match="saved"):
            assign("backprop", model, *batch())


def peak_bytes(name: str, depth: int) -> tuple[int, int]:
    """The most memory that a rule's call holds beyond what was there, and the bytes of the model's
    weights.
    """
    model = small.model(small.some_model(depth=depth), context=64)
    both = small.tokens(16, 65)
    of_batch = both[:, :-1].contiguous(), both[:, 1:].contiguous()
    with torch.profiler.profile(
        activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True
    ) as profile:
        assign(name, model, *of_batch, directions=1, samples=1, population=1)
    assert profile.profiler is not None
    assert profile.profiler.kineto_results is not None
    held = most = 0
    for event in profile.profiler.kineto_results.events():
        if event.name() == "[memory]":
            held += event.nbytes()
            most = max(most, held)
    return most, sum(parameter.nbytes for parameter in model.parameters())


@pytest.mark.parametrize("name", [*RULES, "backprop"])
def test_memory_does_not_grow_with_depth_beyond_copies_of_the_weights(name: str) -> None:
    (shallow, few), (deep, many) = peak_bytes(name, 1), peak_bytes(name, 4)
    activations = (
        3 * 16 * 64 * (3 + 1 + 4 + 1) * 16 * 4
    )  # outputs of the linear maps in three blocks of width 16
    grows = deep - shallow - 3 * (many - few) > activations / 4
    assert grows == (name == "backprop")


# -------------------------------------------------------------------------------------------------
# noise in the weights


@pytest.mark.parametrize(
    "choice",
    [small.some_model(), small.some_model(tied=True), *small.variants("models")[-3:]],
    ids=small.title,
)
def test_the_forward_slope_is_the_inner_product_with_the_true_gradient(choice: Choice) -> None:
    model = small.rough(choice).train()
    true = true_gradients(model, *batch())
    named, rng = weight_noise.trainable_parameters(model), torch.Generator().manual_seed(1)
    along = {
        name: torch.randn(3, *parameter.shape, generator=rng, dtype=torch.double)
        for name, parameter in named
    }
    assert len(along) == len(true)  # a tied weight has one direction
    with torch.no_grad():
        loss, slopes_N = weight_noise.directional_derivatives(along, model, *batch())
    torch.testing.assert_close(loss, next_token_loss(model(batch()[0]), batch()[1]).detach())
    expected_N = sum(
        of_noise.flatten(1) @ of_loss.flatten()
        for of_noise, of_loss in zip(along.values(), true, strict=True)
    )
    torch.testing.assert_close(slopes_N, expected_N, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("name", RULES)
def test_a_mixture_is_taught_as_if_it_had_no_penalty(name: str) -> None:
    choices = [choice for choice in small.variants("models") if choice.inner.get("feed_forward")]
    [mixture] = [
        choice for choice in choices if choice.inner["feed_forward"].name == "mixture_of_experts"
    ]
    model = small.rough(mixture).train()
    with_penalty = estimate(name, model, *batch())
    for module in model.modules():
        if hasattr(module, "balance"):
            module.balance = 0.0
    assert torch.equal(estimate(name, model, *batch()), with_penalty)


@pytest.mark.parametrize(("distribution", "beyond"), [("gaussian", 1), ("rademacher", -1)])
def test_forward_gradient_is_unbiased_and_its_variance_is_that_of_theory(
    distribution: str, beyond: int
) -> None:
    model, draws = few_weights(), 600
    true = flat(true_gradients(model, *few_tokens()))
    found = torch.stack(
        [
            estimate(
                "forward_gradient",
                model,
                *few_tokens(),
                seed=seed,
                directions=1,
                distribution=distribution,
            )
            for seed in range(draws)
        ]
    )
    expected = len(true) + beyond
    errors = (found - true).square().sum(dim=1) / true.square().sum()
    assert errors.mean().item() == pytest.approx(expected, rel=0.15)
    error_of_mean = (found.mean(dim=0) - true).square().sum() / true.square().sum()
    assert error_of_mean.item() == pytest.approx(expected / draws, rel=1)
    for count in (4, 15):
        cosines = [cosine([piece.mean(dim=0)], [true]) for piece in found.split(count)]
        assert sum(cosines) / len(cosines) == pytest.approx(
            (1 + expected / count) ** -0.5, abs=0.06
        )


def test_spsa_is_exact_on_a_quadratic_for_any_step(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        weight_noise, "next_token_loss", lambda logits, targets: (logits - 1).square().sum()
    )
    model = few_weights()  # whose logits are linear in the weights
    for sigma in (0.001, 3.0):
        spsa = estimate("spsa", model, *few_tokens(), directions=2, sigma=sigma)
        forward = estimate("forward_gradient", model, *few_tokens(), directions=2)
        torch.testing.assert_close(spsa, forward, rtol=1e-9, atol=1e-9)


def test_spsa_tends_to_the_forward_gradient_with_the_square_of_the_step_with_dropout() -> None:
    model = small.rough(small.some_model(dropout=0.5)).train()  # each pass alone would drop others
    forward = estimate("forward_gradient", model, *batch(), directions=2)
    errors = [
        (estimate("spsa", model, *batch(), directions=2, sigma=sigma) - forward).norm()
        / forward.norm()
        for sigma in (1e-3, 1e-4)
    ]
    assert errors[1] < 1e-3
    assert errors[0] / errors[1] == pytest.approx(100, rel=0.3)


def test_both_ends_of_a_direction_have_the_weights_in_their_middle() -> None:
    named = weight_noise.trainable_parameters(small.rough(small.some_model()))
    for draw in (weight_noise.gaussian, weight_noise.rademacher, weight_noise.low_rank(2)):
        with noise.keyed(3):
            ends = [weight_noise.perturbed(named, draw, 0, distance) for distance in (0.1, -0.1)]
        for name, parameter in named:
            assert not torch.equal(ends[0][name], ends[1][name])
            torch.testing.assert_close(
                (ends[0][name] + ends[1][name]) / 2, parameter.detach(), rtol=0, atol=1e-15
            )


@pytest.mark.parametrize("name", ["evolution_strategies", "low_rank_evolution", "spsa"])
def test_a_large_population_finds_the_gradient(name: str) -> None:
    model = few_weights()
    true = flat(true_gradients(model, *few_tokens()))
    sizes = {"population": 1500, "directions": 1500}
    found = estimate(name, model, *few_tokens(), sigma=1e-4, shaping="none", **sizes)
    assert (found - true).norm() / true.norm() < 0.25  # one pair alone: 3 or more
    alone = estimate(
        name, model, *few_tokens(), sigma=1e-4, shaping="none", population=1, directions=1
    )
    assert (alone - true).norm() / true.norm() > 0.5


@pytest.mark.parametrize("name", ["evolution_strategies", "low_rank_evolution"])
def test_ranks_hide_any_monotone_change_of_the_losses(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = few_weights()

    def both() -> list[Tensor]:
        return [
            estimate(name, model, *few_tokens(), shaping=shaping, sigma=0.1)
            for shaping in ("ranks", "none")
        ]

    plain = both()
    monkeypatch.setattr(
        weight_noise,
        "next_token_loss",
        lambda logits, targets: 5 * next_token_loss(logits, targets) ** 3,
    )
    changed = both()
    assert torch.equal(plain[0], changed[0])
    assert not torch.allclose(plain[1], changed[1])
    assert cosine([plain[0]], [plain[1]]) > 0.5  # and both go downhill


@pytest.mark.parametrize("rank", [1, 2])
def test_noise_of_low_rank_has_that_rank_and_the_covariance_of_full_noise(rank: int) -> None:
    draw, rng = weight_noise.low_rank(rank), torch.Generator().manual_seed(0)
    like = torch.empty(3, 4, dtype=torch.double)
    draws = torch.stack([draw(like, rng) for _ in range(20000)])
    assert (torch.linalg.matrix_rank(draws[:50]) == rank).all()
    rows = draws.flatten(1)
    torch.testing.assert_close(rows.mean(dim=0), torch.zeros(12).double(), rtol=0, atol=0.04)
    torch.testing.assert_close(rows.T @ rows / len(rows), torch.eye(12).double(), rtol=0, atol=0.1)
    assert draw(torch.empty(5, 2, 3), rng).flatten(1).shape == (5, 6)


# --------------------------------------------------------------------------------------------------
# noise at the nodes


def names(choice: Choice) -> list[str]:
    return [choice.name, *(inner.name for inner in choice.inner.values())]


def every_kind_of_map() -> list[Choice]:
    sizes: dict[str, Any] = {
        "width": 4,
        "depth": 1,
        "layers": 1,
        "state": 2,
        "balance": 0.0,
        "buckets": 30,
        "experts": 2,
    }
    no_other_maps = {
        "hybrid",
        "identity",
        "dynamic_tanh",
        "layer_norm",
        "post",
        "sandwich",
        "alibi",
        "gelu",
    }
    return [
        choice
        for choice in small.variants("models", **sizes)
        if not no_other_maps & set(names(choice))
    ]


@pytest.mark.parametrize("choice", every_kind_of_map(), ids=small.title)
def test_noise_at_every_node_in_turn_gives_the_true_gradient(choice: Choice) -> None:
    """At a node of all three sequences in the same pass, as each is taught by its own losses."""
    model = small.rough(choice, vocabulary_size=5, context=2).train()
    both = small.tokens(3, 3, vocabulary_size=5)
    of_batch = both[:, :-1].contiguous(), both[:, 1:].contiguous()
    true = true_gradients(model, *of_batch)
    sites: dict[int, int] = {}
    """For each seed that noise is drawn with, the place of the 1 in it; below 0 or beyond its
    numbers there is none.
    """
    drawn = [0]

    def one_hot(like: Tensor, generator: torch.Generator) -> Tensor:
        """1 at the node of the member's number, counted over all that the member draws; in each
        sequence, if it has any.
        """
        of_each = len(like) == 3 and not isinstance(like, torch.nn.Parameter)
        numbers = like.numel() // (3 if of_each else 1)
        place = sites.setdefault(generator.initial_seed(), member - drawn[0])
        drawn[0] += numbers
        hot = torch.zeros(numbers, dtype=like.dtype)
        if 0 <= place < len(hot):
            hot[place] = 1
        return hot.expand(3, -1).reshape(like.shape) if of_each else hot.view(like.shape)

    samples = []
    with torch.no_grad(), noise.keyed("nodes"):
        for group in node_noise.noise_groups(model, 1):
            member, drawn[0] = 0, 1
            while member < drawn[0]:
                drawn[0] = 0
                losses_BT, slopes_BT = node_noise.derivatives_along_node_noise(
                    model, group, member, one_hot, *of_batch
                )
                samples.append(NodeSample(group, member, node_noise.credit(slopes_BT)))
                member += 1
        node_noise.accumulate_node_gradients(model, samples, one_hot, of_batch[0])
    torch.testing.assert_close(
        losses_BT.sum(), next_token_loss(model(of_batch[0]), of_batch[1]).detach()
    )
    for (name, _), ours, theirs in zip(
        model.named_parameters(), gradients(model), true, strict=True
    ):
        torch.testing.assert_close(
            ours, theirs, rtol=1e-9, atol=1e-10, msg=lambda text, at=name: f"{at}: {text}"
        )


@pytest.mark.parametrize("at_once", [0, 1])
@pytest.mark.parametrize("other", ["transformer", "lstm", "state_space"])
def test_node_perturbation_tends_to_the_activity_forward_gradient_though_units_are_dropped(
    other: str, at_once: int
) -> None:
    model = small.rough(registry.choose(small.tree(dropout=0.5), "models", other)).train()
    changes = {"samples": 2, "maps_at_once": at_once}
    exact = estimate("activity_forward_gradient", model, *batch(), **changes)
    errors = [
        (estimate("node_perturbation", model, *batch(), sigma=sigma, **changes) - exact).norm()
        / exact.norm()
        for sigma in (1e-4, 1e-5)
    ]
    assert errors[1] < 1e-2
    assert errors[0] / errors[1] == pytest.approx(10, rel=0.3)


def test_the_error_of_node_perturbation_falls_with_the_number_of_samples_as_the_law_says() -> None:
    model = small.rough(small.some_model(width=8, depth=1))
    true = flat(true_gradients(model, *batch()))
    variances, cosines = [], []
    for count in (1, 4, 16):
        found = [
            estimate("node_perturbation", model, *batch(), seed=s, samples=count, sigma=1e-5)
            for s in range(64 // count)
        ]
        errors = torch.stack(
            [(gradient - true).square().sum() / true.square().sum() for gradient in found]
        )
        variances.append(
            count * errors.mean().item()
        )  # of one sample: the same, from however many it is read
        cosines.append(sum(cosine([gradient], [true]) for gradient in found) / len(found))
    one = sum(variances) / 3
    assert variances == pytest.approx([one] * 3, rel=0.35)
    assert cosines == pytest.approx([(1 + one / count) ** -0.5 for count in (1, 4, 16)], abs=0.08)
    assert cosines == sorted(cosines)


def test_all_maps_at_once_are_noisier_at_equal_cost() -> None:
    model = small.rough(small.some_model())
    true = flat(true_gradients(model, *batch()))
    groups = len(node_noise.noise_groups(model, 1))
    apart = estimate("node_perturbation", model, *batch(), samples=4, sigma=1e-5)
    together = estimate(
        "node_perturbation", model, *batch(), samples=4 * groups, sigma=1e-5, maps_at_once=0
    )
    assert cosine([apart], [true]) > cosine([together], [true])


def test_a_sequence_is_taught_by_its_own_losses_at_a_token_and_after_it() -> None:
    model = small.rough(small.some_model())
    tokens, targets = batch()
    group = node_noise.noise_groups(model, 0)[0]
    with torch.no_grad(), noise.keyed(5):
        args = (model, node_noise.NoiseGroup(group.weights, []), 0, weight_noise.rademacher)
        _, slopes_BT = node_noise.derivatives_along_node_noise(*args, tokens, targets)
        others = torch.cat((tokens[:1], tokens[1:].flip(0)))
        _, changed_BT = node_noise.derivatives_along_node_noise(*args, others, targets)
    torch.testing.assert_close(slopes_BT[0], changed_BT[0])
    assert not torch.allclose(slopes_BT[1], changed_BT[1])
    torch.testing.assert_close(
        node_noise.credit(torch.tensor([[1.0, 2.0, 4.0]])), torch.tensor([[7.0, 6.0, 4.0]])
    )


@pytest.mark.parametrize("name", RULES)
def test_another_seed_is_another_estimate_and_the_same_seed_the_same(name: str) -> None:
    model = small.rough(small.some_model())
    first, again, other = (estimate(name, model, *batch(), seed=seed) for seed in (2, 2, 3))
    assert torch.equal(first, again)
    assert not torch.allclose(first, other)
