"""Parameter groups, what every optimizer keeps, and each against its formula or a library's."""

from collections.abc import Iterator
from math import sqrt
from pathlib import Path
from typing import Any

import pytest
import pytorch_optimizer
import small
import torch
from small import CONTEXT
from torch import Tensor

from lmlab.core import registry
from lmlab.core.errors import UserError
from lmlab.core.registry import Choice
from lmlab.model.models.base import LanguageModel, next_token_loss
from lmlab.training import checkpoint
from lmlab.training import cost as sizing
from lmlab.training.optimizers.base import (
    Averaging,
    OptimizerOptions,
    add_caution,
    evaluation_weights,
    parameter_groups,
)
from lmlab.training.optimizers.muon import orthogonalised

every_optimizer = pytest.mark.parametrize("name", registry.names("optimizers"))
AVERAGING = [
    name
    for name in registry.names("optimizers")
    if issubclass(registry.find("optimizers", name)[0], Averaging)
]


def optimizer_for(name: str, model: LanguageModel, **changes: Any) -> torch.optim.Optimizer:
    built: torch.optim.Optimizer = registry.choose(small.tree(**changes), "optimizers", name).build(
        parameter_groups(model)
    )
    return built


def learn(
    model: LanguageModel, optimizer: torch.optim.Optimizer, steps: int, first: int = 0
) -> None:
    for step in range(first, first + steps):
        both = small.tokens(4, CONTEXT + 1, seed=step)
        next_token_loss(model(both[:, :-1]), both[:, 1:]).backward()
        optimizer.step()
        optimizer.zero_grad()


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("choice", small.variants("models"), ids=small.title)
def test_every_parameter_is_in_exactly_one_group(choice: Choice, tied: bool) -> None:
    if "tied" in type(choice.options).model_fields:
        choice = Choice(
            choice.kind, choice.name, choice.options.model_copy(update={"tied": tied}), choice.inner
        )
    model = small.model(choice)
    groups = parameter_groups(model)
    grouped = [id(parameter) for group in groups.values() for parameter in group]
    assert sorted(grouped) == sorted(id(parameter) for parameter in model.parameters())
    assert all(groups.values())
    if model.readout is not None:
        shared = any(
            model.readout.weight is m.weight
            for m in model.modules()
            if isinstance(m, torch.nn.Embedding)
        )
        assert shared == (tied and "tied" in type(choice.options).model_fields)
        assert id(model.readout.weight) in {
            id(p) for p in groups["embeddings" if shared else "readout"]
        }
    assert all(
        parameter.ndim >= 2 for parameter in groups.get("matrices", [])
    )  # 3 in a convolution
    assert all(parameter.ndim == 1 for parameter in groups.get("vectors", []))


# ---------------------------------------------------------------- what every optimizer keeps

DECAYS = ["decoupled", "coupled", "independent"]
Weights = dict[str, torch.Tensor]


def weights(model: LanguageModel) -> Weights:
    return {name: parameter.detach().clone() for name, parameter in model.named_parameters()}


def same(one: Weights, other: Weights) -> bool:
    return all(torch.equal(one[name], other[name]) for name in one)


def names_in(model: LanguageModel, group: str) -> set[str]:
    members = {id(parameter) for parameter in parameter_groups(model).get(group, [])}
    return {name for name, parameter in model.named_parameters() if id(parameter) in members}


def random_gradients(model: LanguageModel, seed: int) -> None:
    rng = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        parameter.grad = torch.randn(parameter.shape, generator=rng, dtype=torch.float64).to(
            parameter.dtype
        )


@every_optimizer
def test_an_optimizer_holds_every_parameter_once_and_learns(name: str) -> None:
    model = small.model(small.some_model())
    optimizer = optimizer_for(name, model)
    held = [id(parameter) for group in optimizer.param_groups for parameter in group["params"]]
    assert sorted(held) == sorted(id(parameter) for parameter in model.parameters())
    both = small.tokens(4, CONTEXT + 1)

    def loss() -> torch.Tensor:
        return next_token_loss(model(both[:, :-1]), both[:, 1:])

    first = loss().item()
    for _ in range(30):
        loss().backward()
        optimizer.step()
        optimizer.zero_grad()
    with evaluation_weights(optimizer):
        assert loss().item() < first - 0.2


@every_optimizer
def test_its_groups_are_those_of_the_model_each_with_a_name_and_a_rate(name: str) -> None:
    model = small.model(small.some_model(normalisation="layer_norm"))
    optimizer = optimizer_for(name, model, weight_decay=0.3)
    groups = parameter_groups(model)
    assert [group["name"] for group in optimizer.param_groups] == list(groups)
    for group in optimizer.param_groups:
        assert [id(p) for p in group["params"]] == [id(p) for p in groups[group["name"]]]
        assert group["lr"] > 0
    described = sizing.lines(
        sizing.describe(model, optimizer, batch=1, microbatch=1, precision="float32")
    )
    lines = [line.removeprefix("group ") for line in described if line.startswith("group ")]
    assert [line.split(":")[0] for line in lines] == list(groups)
    assert [line.endswith("weight decay 0.3") for line in lines] == [
        name == "matrices" for name in groups
    ]
    count = sum(parameter.numel() for parameter in groups["matrices"])
    assert (
        f" {len(groups['matrices'])} tensors, {count:,} parameters, learning rate "
        in lines[list(groups).index("matrices")]
    )


def tensors_of(tree: Any) -> Iterator[Tensor]:
    if isinstance(tree, Tensor):
        yield tree
    elif isinstance(tree, dict | list):
        for inner in tree.values() if isinstance(tree, dict) else tree:
            yield from tensors_of(inner)


@every_optimizer
@pytest.mark.parametrize(
    "changes", [{}, {"cautious": True}, *({"decay": decay} for decay in DECAYS)], ids=str
)
def test_an_optimizer_saved_and_resumed_takes_the_same_steps_to_the_last_bit(
    name: str, changes: dict[str, Any], tmp_path: Path
) -> None:
    model = small.model(small.some_model())
    optimizer = optimizer_for(name, model, **changes)
    learn(model, optimizer, 3)
    checkpoint.save(tmp_path, {"model": model.state_dict(), "optimizer": optimizer.state_dict()})
    learn(model, optimizer, 12, first=3)
    state = [
        value for group in optimizer.state_dict()["state"].values() for value in tensors_of(group)
    ]
    assert state
    assert all(
        value.is_contiguous() for value in state
    )  # as a checkpoint gives them back: sums depend on the order

    resumed = small.model(small.some_model(), seed=5)
    other = optimizer_for(name, resumed, **changes)
    saved = checkpoint.load(tmp_path)
    assert saved
    resumed.load_state_dict(saved["model"])
    other.load_state_dict(saved["optimizer"])
    learn(resumed, other, 12, first=3)
    assert same(weights(model), weights(resumed))
    with evaluation_weights(optimizer), evaluation_weights(other):
        assert same(weights(model), weights(resumed))


@every_optimizer
def test_it_takes_the_same_steps_twice(name: str) -> None:
    ends = []
    for _ in range(2):
        model = small.model(small.some_model())
        optimizer = optimizer_for(name, model)
        learn(model, optimizer, 12)
        ends.append(weights(model))
    assert same(*ends)


@every_optimizer
def test_in_double_precision_everything_it_keeps_is_double(name: str) -> None:
    model = small.model(small.some_model()).double()
    optimizer = optimizer_for(name, model, cautious=True, weight_decay=0.1)
    learn(model, optimizer, 12)

    def kept(node: Any) -> list[torch.Tensor]:
        if isinstance(node, dict | list):
            return [
                tensor
                for inner in (node.values() if isinstance(node, dict) else node)
                for tensor in kept(inner)
            ]
        return (
            [node] if isinstance(node, torch.Tensor) and node.ndim else []
        )  # torch counts steps in single precision

    state = kept(optimizer.state_dict()["state"])
    assert state
    assert {tensor.dtype for tensor in [*state, *model.parameters()]} == {torch.float64}
    assert all(tensor.isfinite().all() for tensor in [*state, *model.parameters()])


@every_optimizer
@pytest.mark.parametrize("decay", DECAYS)
def test_at_rate_zero_nothing_moves_and_a_factor_of_zero_stops_one_group(
    name: str, decay: str
) -> None:
    model = small.model(small.some_model(normalisation="layer_norm"))
    for stopped in [
        {"embeddings", "readout", "matrices", "vectors"},
        {"matrices"},
        {"vectors"},
        {"embeddings"},
    ]:
        optimizer = optimizer_for(name, model, decay=decay, weight_decay=0.1)
        for group in optimizer.param_groups:
            group["lr"] *= 0.0 if group["name"] in stopped else 1.0
            group["initial_lr"] = group["lr"]  # as training does before the first step
        before = weights(model)
        learn(model, optimizer, 3)
        after = weights(model)
        still = {key for key in before if torch.equal(before[key], after[key])}
        assert still == set().union(*(names_in(model, group) for group in stopped))


@every_optimizer
def test_parameters_without_a_gradient_stay_and_may_get_one_later(name: str) -> None:
    model = small.model(small.some_model(normalisation="layer_norm"))
    optimizer = optimizer_for(name, model, weight_decay=0.1, cautious=True)
    optimizer.step()
    without = [key for place, key in enumerate(dict(model.named_parameters())) if place % 2]
    before = weights(model)
    for step in range(6):
        random_gradients(model, step)
        for key, parameter in model.named_parameters():
            if key in without and step < 3:
                parameter.grad = None
        optimizer.step()
        moved = {key for key, now in weights(model).items() if not torch.equal(now, before[key])}
        assert moved.isdisjoint(without) or step >= 3
    assert moved == set(before)


@every_optimizer
@pytest.mark.parametrize("decay", DECAYS)
def test_weight_decay_moves_matrices_and_nothing_else(name: str, decay: str) -> None:
    model = small.model(small.some_model(normalisation="layer_norm"))
    optimizer = optimizer_for(name, model, decay=decay, weight_decay=0.2)
    before = weights(model)
    for _ in range(2):
        for parameter in model.parameters():
            parameter.grad = torch.zeros_like(parameter)
        optimizer.step()
    moved = {key for key, now in weights(model).items() if not torch.equal(now, before[key])}
    assert moved == names_in(model, "matrices")
    assert all(weights(model)[key].norm() < before[key].norm() for key in moved)


# ---------------------------------------------------------------- weight decay and caution, on any
# optimizer


@every_optimizer
@pytest.mark.parametrize(
    ("decay", "factor"), [("decoupled", 1 - 0.5 * 0.25 * 0.2), ("independent", 1 - 0.25 * 0.2)]
)
def test_decay_shrinks_a_weight_by_its_formula(name: str, decay: str, factor: float) -> None:
    model = small.model(small.some_model()).double()
    optimizer = optimizer_for(name, model, learning_rate=0.5, decay=decay, weight_decay=0.2)
    for group in optimizer.param_groups:
        group["initial_lr"], group["lr"] = (
            group["lr"],
            0.25 * group["lr"],
        )  # a quarter of the way up the warm-up
    before = weights(model)
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    for key in names_in(model, "matrices"):
        torch.testing.assert_close(weights(model)[key], factor * before[key], rtol=1e-12, atol=0)


@every_optimizer
def test_coupled_decay_is_a_penalty_in_the_gradient(name: str) -> None:
    """The same steps as without decay on gradients to which it was added by hand."""
    models = [small.model(small.some_model()).double() for _ in range(2)]
    penalised = optimizer_for(name, models[0], decay="coupled", weight_decay=0.3)
    by_hand = optimizer_for(name, models[1], weight_decay=0.0)
    for step in range(4):
        for model in models:
            random_gradients(model, step)
        for parameter in parameter_groups(models[1])["matrices"]:
            assert parameter.grad is not None
            parameter.grad.add_(parameter.detach(), alpha=0.3)
        penalised.step()
        by_hand.step()
    assert same(*(weights(model) for model in models))


def with_caution(optimizer: torch.optim.Optimizer) -> None:
    options = registry.choose(small.tree(cautious=True), "optimizers", "adamw").options
    assert isinstance(options, OptimizerOptions)
    add_caution(optimizer, options)


def test_caution_drops_the_steps_against_the_gradient_and_lengthens_the_others() -> None:
    """One weight's momentum still goes the wrong way: it stays, and the three others go 4/3 as
    far.
    """
    weight = torch.nn.Parameter(torch.zeros(4, dtype=torch.float64))
    optimizer = torch.optim.SGD([weight], lr=0.1, momentum=0.5)
    with_caution(optimizer)
    weight.grad = torch.ones(4, dtype=torch.float64)
    optimizer.step()
    torch.testing.assert_close(weight.detach(), torch.full((4,), -0.1, dtype=torch.float64))
    weight.grad = torch.tensor([1.0, 1.0, 1.0, -0.25], dtype=torch.float64)
    optimizer.step()
    moved = -0.1 * 1.5 * 4 / 3
    torch.testing.assert_close(
        weight.detach(), torch.tensor([moved, moved, moved, 0.0], dtype=torch.float64) - 0.1
    )


def test_caution_changes_no_bit_where_every_step_goes_down_the_gradient() -> None:
    """Plain gradient descent never goes up, so its cautious form is itself, also over weights of
    all sizes.
    """
    plain, cautious = (torch.nn.Parameter(10.0 ** torch.linspace(-9, 3, 500)) for _ in range(2))
    optimizers = [torch.optim.SGD([weight], lr=0.1) for weight in (plain, cautious)]
    with_caution(optimizers[1])
    for step in range(20):
        gradient = torch.randn(500, generator=torch.Generator().manual_seed(step))
        plain.grad, cautious.grad = gradient.clone(), gradient.clone()
        for optimizer in optimizers:
            optimizer.step()
    assert torch.equal(plain, cautious)


@pytest.mark.parametrize("decay", ["decoupled", "independent"])
@pytest.mark.parametrize("name", sorted({*registry.names("optimizers")} - {*AVERAGING}))
def test_caution_moves_no_weight_against_its_gradient_and_leaves_decay_alone(
    name: str, decay: str
) -> None:
    model = small.model(small.some_model()).double()
    optimizer = optimizer_for(
        name, model, cautious=True, decay=decay, weight_decay=0.1, learning_rate=0.01
    )
    held_back = 0
    for step in range(6):
        random_gradients(model, step)
        before = weights(model)
        gradients = {
            key: p.grad.clone() for key, p in model.named_parameters() if p.grad is not None
        }
        optimizer.step()
        factor = 1 - 0.1 * (0.01 if decay == "decoupled" else 1)
        matrices = names_in(model, "matrices")
        for key, now in weights(model).items():
            step_alone = now - before[key] * (factor if key in matrices else 1)
            assert (step_alone * gradients[key] <= 1e-15).all()
            held_back += int((step_alone.abs() < 1e-15).sum())
    assert held_back > 0


# ---------------------------------------------------------------- each by itself


def test_adamws_weights_are_those_of_torch_to_the_last_bit() -> None:
    ours, theirs = (small.model(small.some_model(normalisation="layer_norm")) for _ in range(2))
    groups = parameter_groups(theirs)
    optimizers = [
        optimizer_for("adamw", ours, learning_rate=0.01, weight_decay=0.1),
        torch.optim.AdamW(
            [
                {"params": group, "weight_decay": 0.1 if name == "matrices" else 0.0}
                for name, group in groups.items()
            ],
            lr=0.01,
            betas=(0.9, 0.99),
            fused=True,
        ),
    ]
    for step in range(30):
        for model, optimizer in zip((ours, theirs), optimizers, strict=True):
            for group in optimizer.param_groups:
                group["lr"] = 0.01 * (1 - step / 31)
            learn(model, optimizer, 1, first=step)
    assert same(weights(ours), weights(theirs))


def test_adamw_is_its_formula() -> None:
    model = small.model(small.some_model()).double()
    optimizer = optimizer_for("adamw", model, learning_rate=0.01, weight_decay=0.1)
    decayed = {id(parameter) for parameter in parameter_groups(model)["matrices"]}
    expected = [
        (p.detach().clone(), torch.zeros_like(p), torch.zeros_like(p), id(p) in decayed)
        for p in model.parameters()
    ]
    rng = torch.Generator().manual_seed(0)
    for step in (1, 2, 3):
        for place, parameter in enumerate(model.parameters()):
            gradient = torch.randn(parameter.shape, generator=rng, dtype=torch.float64)
            parameter.grad = gradient.clone()
            weight, mean, square, decays = expected[place]
            weight = weight * (1 - 0.01 * 0.1) if decays else weight
            mean, square = 0.9 * mean + 0.1 * gradient, 0.99 * square + 0.01 * gradient**2
            root = square.sqrt() / sqrt(1 - 0.99**step) + 1e-8
            expected[place] = (weight - 0.01 * mean / (1 - 0.9**step) / root, mean, square, decays)
        optimizer.step()
    for parameter, (weight, *_) in zip(model.parameters(), expected, strict=True):
        torch.testing.assert_close(parameter.detach(), weight, rtol=0, atol=1e-12)


@pytest.mark.parametrize(("momentum", "nesterov"), [(0.0, False), (0.9, False), (0.9, True)])
def test_sgd_is_its_formula(momentum: float, nesterov: bool) -> None:
    model = small.model(small.some_model()).double()
    optimizer = optimizer_for(
        "sgd", model, learning_rate=0.1, weight_decay=0.0, momentum=momentum, nesterov=nesterov
    )
    expected = weights(model)
    sums = {key: torch.zeros_like(weight) for key, weight in expected.items()}
    for step in range(4):
        random_gradients(model, step)
        for key, parameter in model.named_parameters():
            assert parameter.grad is not None
            sums[key] = momentum * sums[key] + parameter.grad
            expected[key] -= 0.1 * (
                parameter.grad + momentum * sums[key] if nesterov else sums[key]
            )
        optimizer.step()
    for key, now in weights(model).items():
        torch.testing.assert_close(now, expected[key], rtol=0, atol=1e-12)


def test_nesterovs_form_without_momentum_is_refused() -> None:
    with pytest.raises(
        UserError, match=r"optimizers\.sgd: nesterov: true needs a momentum above 0"
    ):
        registry.choose(small.tree(momentum=0.0, nesterov=True), "optimizers", "sgd")


def test_lion_without_memory_is_sign_descent() -> None:
    model = small.model(small.some_model()).double()
    optimizer = optimizer_for(
        "lion", model, learning_rate=0.25, beta1=0.0, beta2=0.0, weight_decay=0.0
    )
    for step in range(3):
        before = weights(model)
        random_gradients(model, step)
        optimizer.step()
        for key, parameter in model.named_parameters():
            assert parameter.grad is not None
            assert torch.equal(parameter.detach(), before[key] - 0.25 * parameter.grad.sign())


def test_lion_is_that_of_the_library() -> None:
    ours, theirs = (small.model(small.some_model()).double() for _ in range(2))
    one = optimizer_for("lion", ours, learning_rate=0.01, beta1=0.9, beta2=0.99, weight_decay=0.0)
    other = pytorch_optimizer.Lion(
        theirs.parameters(), lr=0.01, betas=(0.9, 0.99), weight_decay=0.0
    )
    for step in range(8):
        random_gradients(ours, step)
        random_gradients(theirs, step)
        one.step()
        other.step()
    for key, now in weights(ours).items():
        torch.testing.assert_close(now, weights(theirs)[key], rtol=0, atol=1e-12)


@pytest.mark.parametrize(
    ("scale", "theirs"), [("by_shape", "original"), ("as_adam", "match_rms_adamw")]
)
def test_muon_is_torchs_on_matrices_and_its_adamw_elsewhere(
    scale: str, theirs: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        torch.Tensor, "bfloat16", lambda self: self.clone()
    )  # torch's would round to three digits
    model, other = (
        small.model(small.some_model(normalisation="layer_norm")).double() for _ in range(2)
    )
    rates = {"learning_rate": 0.02, "adam_learning_rate": 0.003}
    ours = optimizer_for(
        "muon", model, **rates, scale=scale, momentum=0.95, nesterov=True, weight_decay=0.1
    )
    groups = parameter_groups(other)
    rest = [
        parameter for name, group in groups.items() if name != "matrices" for parameter in group
    ]
    muon = torch.optim.Muon(
        groups["matrices"], lr=0.02, weight_decay=0.1, momentum=0.95, adjust_lr_fn=theirs
    )
    adam = torch.optim.AdamW(rest, lr=0.003, betas=(0.9, 0.99), weight_decay=0.0)
    for step in range(6):
        random_gradients(model, step)
        random_gradients(other, step)
        for optimizer in (ours, muon, adam):
            optimizer.step()
    for key, now in weights(model).items():
        torch.testing.assert_close(now, weights(other)[key], rtol=0, atol=1e-12)


@pytest.mark.parametrize("shape", [(40, 40), (20, 80), (80, 20), (1, 30), (300, 7)])
def test_newton_schulz_brings_singular_values_near_one_and_keeps_the_directions(
    shape: tuple[int, int],
) -> None:
    rng = torch.Generator().manual_seed(0)
    matrices = 10.0 ** torch.arange(-3.0, 3.0).view(6, 1, 1) * torch.randn(6, *shape, generator=rng)
    made = orthogonalised(matrices, 5)
    values = torch.linalg.svdvals(made.double())
    left, before, right = torch.linalg.svd(matrices.double(), full_matrices=False)
    middle = left.mT @ made.double() @ right.mT
    torch.testing.assert_close(
        middle, torch.diag_embed(middle.diagonal(dim1=1, dim2=2)), rtol=0, atol=1e-4
    )
    ample = before > 0.02 * torch.linalg.matrix_norm(matrices.double()).unsqueeze(
        1
    )  # five steps lift no less to 1
    assert ample.float().mean() > 0.9
    assert values.max() < 1.2026  # the polynomial's highest point, and below its lowest
    assert middle.diagonal(dim1=1, dim2=2)[ample].min() > 0.6818


@pytest.mark.parametrize("decades", [0, 3, 6, 12])
@pytest.mark.parametrize("steps", [3, 5, 8])
def test_newton_schulz_by_the_gram_matrix_is_the_plain_iteration(decades: int, steps: int) -> None:
    """However unequal the singular values are: squared, most of them are below what single
    precision tells apart.
    """
    rng = torch.Generator().manual_seed(0)
    left, right = (torch.linalg.qr(torch.randn(n, n, generator=rng).double())[0] for n in (32, 128))
    matrix = (left * torch.logspace(0, -decades, 32).double()) @ right[:32]
    plain = matrix / torch.linalg.matrix_norm(matrix)
    for _ in range(steps):
        gram = plain @ plain.mT
        plain = 3.4445 * plain - 4.7750 * gram @ plain + 2.0315 * gram @ gram @ plain
    torch.testing.assert_close(
        orthogonalised(matrix.unsqueeze(0), steps)[0], plain, rtol=0, atol=1e-9
    )
    single = orthogonalised(matrix.float().unsqueeze(0), steps)[0]
    torch.testing.assert_close(single.double(), plain, rtol=0, atol=3e-4 if steps <= 5 else 3e-3)


def test_muon_steps_of_a_stack_are_those_of_its_matrices_alone_and_a_convolution_is_a_matrix() -> (
    None
):
    rng = torch.Generator().manual_seed(0)
    stack = torch.randn(3, 6, 20, generator=rng, dtype=torch.float64)
    for matrix, together in zip(stack, orthogonalised(stack, 5), strict=True):
        torch.testing.assert_close(
            orthogonalised(matrix.unsqueeze(0), 5)[0], together, rtol=0, atol=1e-13
        )
    flat, deep = (torch.nn.Parameter(stack[0].reshape(shape)) for shape in [(6, 20), (6, 4, 5)])
    choice = registry.choose(small.tree(), "optimizers", "muon")
    for parameter in (flat, deep):
        optimizer = choice.build({"matrices": [parameter]})
        parameter.grad = stack[1].reshape(parameter.shape).clone()
        optimizer.step()
    assert torch.equal(flat, deep.flatten(1))


def test_schedule_free_averages_exactly() -> None:
    """The mean of the bases weighted by squared rates; at an even rate the plain mean (Defazio et
    al. 2024).
    """
    model = small.model(small.some_model()).double()
    for rates in ([0.01] * 9, [0.001, 0.002, 0.003, 0.004, 0.004, 0.0]):
        optimizer = optimizer_for("schedule_free", model, weight_decay=0.1)
        bases: list[list[torch.Tensor]] = []
        for step, rate in enumerate(rates):
            for group in optimizer.param_groups:
                group["lr"] = rate
            learn(model, optimizer, 1, first=step)
            bases.append(
                [optimizer.state[parameter]["base"].clone() for parameter in model.parameters()]
            )
        shares = torch.tensor(rates, dtype=torch.float64) ** 2
        shares /= shares.sum()
        training = weights(model)
        with evaluation_weights(optimizer):
            evaluated = weights(model)
        assert same(weights(model), training)
        for place, key in enumerate(training):
            mean = torch.einsum(
                "s,s...->...", shares, torch.stack([of_step[place] for of_step in bases])
            )
            torch.testing.assert_close(evaluated[key], mean, rtol=0, atol=1e-13)
            torch.testing.assert_close(
                training[key], 0.1 * bases[-1][place] + 0.9 * mean, rtol=0, atol=1e-13
            )
            assert not torch.equal(evaluated[key], training[key])


def test_schedule_free_with_gradients_at_the_base_is_adamw_without_momentum() -> None:
    models = [small.model(small.some_model()) for _ in range(2)]
    free = optimizer_for(
        "schedule_free", models[0], interpolation=0.0, learning_rate=0.01, weight_decay=0.1
    )
    adam = optimizer_for("adamw", models[1], beta1=0.0, learning_rate=0.01, weight_decay=0.1)
    learn(models[0], free, 8)
    learn(models[1], adam, 8)
    for one, other in zip(*(weights(model).values() for model in models), strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-6)


@pytest.mark.parametrize("decay", [0.0, 0.1])
def test_schedule_free_is_that_of_the_library(decay: float) -> None:
    ours, theirs = (small.model(small.some_model()).double() for _ in range(2))
    options = {"learning_rate": 0.01, "interpolation": 0.9, "beta2": 0.99, "epsilon": 1e-30}
    one = optimizer_for("schedule_free", ours, **options, weight_decay=decay)
    groups = [
        {"params": group, "weight_decay": decay if name == "matrices" else 0.0}
        for name, group in parameter_groups(theirs).items()
    ]
    other = pytorch_optimizer.ScheduleFreeAdamW(groups, lr=0.01, betas=(0.9, 0.99), eps=1e-30)
    for step in range(8):
        random_gradients(ours, step)
        random_gradients(theirs, step)
        one.step()
        other.step()
        for key, now in weights(ours).items():
            torch.testing.assert_close(now, weights(theirs)[key], rtol=0, atol=1e-9)
    other.eval()
    with evaluation_weights(one):
        for key, now in weights(ours).items():
            torch.testing.assert_close(now, weights(theirs)[key], rtol=0, atol=1e-9)


def test_cautious_schedule_free_moves_no_base_against_its_gradient() -> None:
    model = small.model(small.some_model()).double()
    optimizer = optimizer_for("schedule_free", model, cautious=True, weight_decay=0.0)
    random_gradients(model, 0)
    optimizer.step()
    for step in range(1, 6):
        random_gradients(model, step)
        bases = [optimizer.state[parameter]["base"].clone() for parameter in model.parameters()]
        optimizer.step()
        for base, parameter in zip(bases, model.parameters(), strict=True):
            assert parameter.grad is not None
            moved = optimizer.state[parameter]["base"] - base
            assert (moved * parameter.grad <= 0).all()
            assert moved.any()


@every_optimizer
def test_only_an_optimizer_that_averages_is_evaluated_at_other_weights_than_it_trains(
    name: str,
) -> None:
    model = small.model(small.some_model())
    optimizer = optimizer_for(name, model)
    with evaluation_weights(optimizer):
        assert same(weights(model), weights(small.model(small.some_model())))
    learn(model, optimizer, 3)
    before = weights(model)
    with evaluation_weights(optimizer):
        assert same(weights(model), before) != (name in AVERAGING)
    assert same(weights(model), before)


def test_weights_come_back_after_an_evaluation_that_fails() -> None:
    model = small.model(small.some_model())
    optimizer = optimizer_for("schedule_free", model)
    learn(model, optimizer, 3)
    before = weights(model)
    with pytest.raises(KeyboardInterrupt), evaluation_weights(optimizer):
        raise KeyboardInterrupt
    assert same(weights(model), before)


def square_matrices(count: int = 2, side: int = 9) -> list[torch.nn.Parameter]:
    rng = torch.Generator().manual_seed(0)
    return [
        torch.nn.Parameter(torch.randn(side, side, generator=rng, dtype=torch.float64))
        for _ in range(count)
    ]


def soap_for(matrices: list[torch.nn.Parameter], **changes: Any) -> torch.optim.Optimizer:
    built: torch.optim.Optimizer = registry.choose(
        small.tree(**changes), "optimizers", "soap"
    ).build({"matrices": matrices})
    return built


def test_soap_in_the_identity_basis_is_adam() -> None:
    ours, theirs = square_matrices(), square_matrices()
    rates = {
        "learning_rate": 0.01,
        "weight_decay": 0.0,
        "beta1": 0.9,
        "beta2": 0.99,
        "refresh": 1000,
    }
    soap = soap_for(ours, **rates)
    adam = torch.optim.Adam(theirs, lr=0.01, betas=(0.9, 0.99))
    rng = torch.Generator().manual_seed(1)
    for step in range(6):
        for one, other in zip(ours, theirs, strict=True):
            one.grad = torch.randn(one.shape, generator=rng, dtype=torch.float64)
            other.grad = one.grad.clone()
        soap.step()
        if step == 0:  # the first gradient only sets the bases
            for matrix in ours:
                soap.state[matrix]["bases"] = [torch.eye(9, dtype=torch.float64)] * 2
        else:
            adam.step()
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-14)


def test_soap_with_no_basis_to_turn_is_adam() -> None:
    ours, theirs = (small.model(small.some_model()).double() for _ in range(2))
    soap = optimizer_for("soap", ours, largest_side=0, learning_rate=0.01, beta1=0.9, beta2=0.99)
    adam = optimizer_for("adamw", theirs, learning_rate=0.01, beta1=0.9, beta2=0.99)
    learn(ours, soap, 5)
    learn(theirs, adam, 5)
    for key, now in weights(ours).items():
        torch.testing.assert_close(now, weights(theirs)[key], rtol=0, atol=1e-10)


def test_soap_without_memory_steps_along_the_polar_factor_as_shampoo_does() -> None:
    """On a gradient G = U S V' that stays the same the step is U V'."""
    (matrix,) = square_matrices(1)
    gradient = square_matrices(2)[1].detach()
    none = {"beta1": 0.0, "beta2": 0.0, "covariance_beta": 0.0, "weight_decay": 0.0}
    soap = soap_for([matrix], **none, learning_rate=0.5, epsilon=1e-9, refresh=2)
    left, _, right = torch.linalg.svd(gradient)
    for step in range(6):
        before = matrix.detach().clone()
        matrix.grad = gradient.clone()
        soap.step()
        expected = 0.5 * left @ right if step else torch.zeros_like(gradient)
        torch.testing.assert_close(before - matrix.detach(), expected, rtol=0, atol=1e-5)


def test_soap_finds_bases_of_gradients_that_few_tokens_made() -> None:
    """Those have rank 1, and of a rectified layer's many numbers are 0: there single precision may
    find no eigenvectors.
    """
    for seed in range(70):
        rng = torch.Generator().manual_seed(seed)
        matrix = torch.nn.Parameter(torch.zeros(32, 128))
        hidden = torch.randn(1, 128, generator=rng).relu().square() / 100
        gradient = torch.randn(32, 1, generator=rng) / 100 @ hidden
        soap = soap_for([matrix], weight_decay=0.0)
        for _ in range(2):
            matrix.grad = gradient.clone()
            soap.step()
        for basis in soap.state[matrix]["bases"]:
            torch.testing.assert_close(basis @ basis.mT, torch.eye(len(basis)), rtol=0, atol=1e-4)
        assert matrix.isfinite().all()
        assert (matrix * gradient).sum() < 0


def test_soap_turned_by_any_rotation_steps_alike() -> None:
    """What Adam lacks: rotating all gradients rotates the steps."""
    plain, turned = square_matrices(1), square_matrices(1)
    rotation = torch.linalg.qr(square_matrices(3)[2].detach()).Q
    optimizers = [soap_for(matrices, weight_decay=0.0, refresh=2) for matrices in (plain, turned)]
    starts = [matrices[0].detach().clone() for matrices in (plain, turned)]
    rng = torch.Generator().manual_seed(1)
    for _ in range(7):
        plain[0].grad = torch.randn(9, 9, generator=rng, dtype=torch.float64)
        turned[0].grad = rotation @ plain[0].grad
        for optimizer in optimizers:
            optimizer.step()
    moved = [
        matrices[0].detach() - start
        for matrices, start in zip((plain, turned), starts, strict=True)
    ]
    torch.testing.assert_close(rotation @ moved[0], moved[1], rtol=0, atol=1e-10)


@pytest.mark.parametrize("largest_side", [9, 8])
def test_soap_is_that_of_the_library(largest_side: int) -> None:
    shapes = (
        [(9, 9)] if largest_side == 9 else [(8, 12), (12, 8)]
    )  # the long side's covariance has no inverse
    rng = torch.Generator().manual_seed(0)
    ours = [
        torch.nn.Parameter(torch.randn(shape, generator=rng, dtype=torch.float64))
        for shape in shapes
    ]
    theirs = [torch.nn.Parameter(parameter.detach().clone()) for parameter in ours]
    rates = {
        "learning_rate": 0.01,
        "weight_decay": 0.0,
        "beta1": 0.9,
        "beta2": 0.99,
        "epsilon": 1e-12,
    }
    one = soap_for(ours, **rates, covariance_beta=0.95, refresh=3, largest_side=largest_side)
    other = pytorch_optimizer.SOAP(
        theirs,
        lr=0.01,
        betas=(0.9, 0.99),
        shampoo_beta=0.95,
        weight_decay=0.0,
        precondition_frequency=3,
        max_precondition_dim=largest_side,
        eps=1e-12,
    )
    for _ in range(13):
        for parameter, twin in zip(ours, theirs, strict=True):
            parameter.grad = torch.randn(parameter.shape, generator=rng, dtype=torch.float64)
            twin.grad = parameter.grad.clone()
        one.step()
        other.step()
    for parameter, twin in zip(ours, theirs, strict=True):
        torch.testing.assert_close(
            parameter, twin, rtol=0, atol=1e-5
        )  # its QR is in single precision
