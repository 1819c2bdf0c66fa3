"""Parameter groups, what every optimizer keeps, and AdamW against its formula."""

from math import sqrt
from pathlib import Path

import pytest
import small
import torch
from small import CONTEXT

from lmlab import checkpoint, parts
from lmlab.models.base import LanguageModel, next_token_loss
from lmlab.optimizers.base import parameter_groups
from lmlab.parts import Choice

every_optimizer = pytest.mark.parametrize("name", parts.names("optimizers"))


def optimizer_for(name: str, model: LanguageModel, **changes: float) -> torch.optim.Optimizer:
    built: torch.optim.Optimizer = parts.choose(small.tree(**changes), "optimizers", name).build(parameter_groups(model))
    return built


def learn(model: LanguageModel, optimizer: torch.optim.Optimizer, steps: int, first: int = 0) -> None:
    for step in range(first, first + steps):
        both = small.tokens(4, CONTEXT + 1, seed=step)
        next_token_loss(model(both[:, :-1]), both[:, 1:]).backward()
        optimizer.step()
        optimizer.zero_grad()


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("choice", small.variants("models"), ids=small.title)
def test_every_parameter_is_in_exactly_one_group(choice: Choice, tied: bool) -> None:
    if "tied" in type(choice.options).model_fields:
        choice = Choice(choice.kind, choice.name, choice.options.model_copy(update={"tied": tied}), choice.inner)
    model = small.model(choice)
    groups = parameter_groups(model)
    grouped = [id(parameter) for group in groups.values() for parameter in group]
    assert sorted(grouped) == sorted(id(parameter) for parameter in model.parameters())
    assert all(groups.values())
    if model.readout is not None:
        shared = any(model.readout.weight is m.weight for m in model.modules() if isinstance(m, torch.nn.Embedding))
        assert shared == (tied and "tied" in type(choice.options).model_fields)
        assert id(model.readout.weight) in {id(p) for p in groups["embeddings" if shared else "readout"]}
    assert all(parameter.ndim >= 2 for parameter in groups.get("matrices", []))  # 3 in a convolution
    assert all(parameter.ndim == 1 for parameter in groups.get("vectors", []))


@every_optimizer
def test_an_optimizer_holds_every_parameter_once_and_learns(name: str) -> None:
    model = small.model(small.some_model())
    optimizer = optimizer_for(name, model)
    held = [id(parameter) for group in optimizer.param_groups for parameter in group["params"]]
    assert sorted(held) == sorted(id(parameter) for parameter in model.parameters())
    assert all("lr" in group for group in optimizer.param_groups)  # what the schedule moves
    both = small.tokens(4, CONTEXT + 1)

    def loss() -> torch.Tensor:
        return next_token_loss(model(both[:, :-1]), both[:, 1:])

    first = loss().item()
    for _ in range(30):
        loss().backward()
        optimizer.step()
        optimizer.zero_grad()
    assert loss().item() < first - 0.2


@every_optimizer
def test_an_optimizer_saved_and_resumed_takes_the_same_steps_to_the_last_bit(name: str, tmp_path: Path) -> None:
    model = small.model(small.some_model())
    optimizer = optimizer_for(name, model)
    learn(model, optimizer, 3)
    checkpoint.save(tmp_path, {"model": model.state_dict(), "optimizer": optimizer.state_dict()})
    learn(model, optimizer, 3, first=3)

    resumed = small.model(small.some_model(), seed=5)
    other = optimizer_for(name, resumed)
    saved = checkpoint.load(tmp_path)
    assert saved
    resumed.load_state_dict(saved["model"])
    other.load_state_dict(saved["optimizer"])
    learn(resumed, other, 3, first=3)
    assert all(torch.equal(one, two) for one, two in zip(model.parameters(), resumed.parameters(), strict=True))


def test_adamw_is_its_formula() -> None:
    model = small.model(small.some_model()).double()
    optimizer = optimizer_for("adamw", model, learning_rate=0.01, weight_decay=0.1)
    decayed = {id(parameter) for parameter in parameter_groups(model)["matrices"]}
    expected = [(p.detach().clone(), torch.zeros_like(p), torch.zeros_like(p), id(p) in decayed) for p in model.parameters()]
    chance = torch.Generator().manual_seed(0)
    for step in (1, 2, 3):
        for place, parameter in enumerate(model.parameters()):
            gradient = torch.randn(parameter.shape, generator=chance, dtype=torch.float64)
            parameter.grad = gradient.clone()
            weight, mean, square, decays = expected[place]
            weight = weight * (1 - 0.01 * 0.1) if decays else weight
            mean, square = 0.9 * mean + 0.1 * gradient, 0.99 * square + 0.01 * gradient**2
            root = square.sqrt() / sqrt(1 - 0.99**step) + 1e-8
            expected[place] = (weight - 0.01 * mean / (1 - 0.9**step) / root, mean, square, decays)
        optimizer.step()
    for parameter, (weight, *_) in zip(model.parameters(), expected, strict=True):
        torch.testing.assert_close(parameter.detach(), weight, rtol=0, atol=1e-12)


def test_adamws_decay_shrinks_matrices_and_nothing_else() -> None:
    model = small.model(small.some_model(normalisation="layer_norm"))
    before = {id(p): p.detach().clone() for p in model.parameters()}
    optimizer = optimizer_for("adamw", model, learning_rate=0.5, weight_decay=0.2)
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    for name, group in parameter_groups(model).items():
        for parameter in group:
            factor = 0.9 if name == "matrices" else 1.0
            torch.testing.assert_close(parameter.detach(), factor * before[id(parameter)])
