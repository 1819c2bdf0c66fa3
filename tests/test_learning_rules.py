"""What every learning rule keeps, and backprop against differences."""

from typing import Any

import pytest
import small
import torch
from small import CONTEXT
from torch import Tensor

from lmlab import parts
from lmlab.learning_rules.base import LearningRule
from lmlab.models.base import LanguageModel, next_token_loss

every_rule = pytest.mark.parametrize("name", parts.names("learning_rules"))


def rule_for(name: str, model: LanguageModel) -> LearningRule:
    torch.manual_seed(1)
    rule: LearningRule = parts.choose(small.tree(), "learning_rules", name).build(model)
    return rule.to(next(model.parameters()).dtype)


def batch(size: int = 4) -> tuple[Tensor, Tensor]:
    both = small.tokens(size, CONTEXT + 1)
    return both[:, :-1].contiguous(), both[:, 1:].contiguous()


def gradients(model: LanguageModel) -> list[Tensor]:
    return [torch.zeros_like(p) if p.grad is None else p.grad.clone() for p in model.parameters()]


def assign(name: str, model: LanguageModel, *of_batch: Tensor) -> Tensor:
    """A rule's first call, with the same chance each time."""
    rule = rule_for(name, model)
    torch.manual_seed(2)
    return rule.assign_gradients(model, *of_batch)


@every_rule
def test_a_rule_adds_to_the_gradients_that_are_there(name: str) -> None:
    model = small.rough(small.some_model())
    assign(name, model, *batch())
    once = gradients(model)
    assert all(p.grad is not None for p in model.parameters())
    assign(name, model, *batch())
    for twice, single in zip(gradients(model), once, strict=True):
        torch.testing.assert_close(twice, 2 * single)


@every_rule
def test_a_rule_changes_nothing_of_the_model_but_its_gradients(name: str) -> None:
    model = small.rough(small.some_model()).train()
    weights = {key: value.clone() for key, value in model.state_dict().items()}
    tokens, targets = batch()
    assign(name, model, tokens, targets)
    assert all(torch.equal(value, weights[key]) for key, value in model.state_dict().items())
    assert model.training
    assert all(p.requires_grad for p in model.parameters())
    assert all(torch.equal(one, other) for one, other in zip((tokens, targets), batch(), strict=True))
    hooks: list[Any] = [hook for module in model.modules() for hook in (module._forward_hooks, module._backward_hooks)]
    assert not any(hooks)


@every_rule
def test_a_rule_returns_the_mean_loss_detached(name: str) -> None:
    model = small.rough(small.some_model())
    tokens, targets = batch()
    loss = assign(name, model, tokens, targets)
    assert loss.shape == ()
    assert not loss.requires_grad
    torch.testing.assert_close(loss, next_token_loss(model(tokens), targets).detach())


@every_rule
def test_a_rule_keeps_neither_the_model_nor_its_weights(name: str) -> None:
    model = small.model(small.some_model())
    rule = rule_for(name, model)
    weights = {parameter.data_ptr() for parameter in model.parameters()}
    assert not any(isinstance(module, LanguageModel) for module in rule.modules())
    assert not weights & {value.data_ptr() for value in rule.state_dict().values()}
    fresh = rule_for(name, model)
    fresh.load_state_dict(rule.state_dict())


@every_rule
def test_a_rule_overfits_one_batch(name: str) -> None:
    model = small.model(small.some_model())
    rule, optimizer = rule_for(name, model), torch.optim.AdamW(model.parameters(), lr=0.01)
    tokens, targets = batch()
    for _ in range(120):
        rule.assign_gradients(model, tokens, targets)
        optimizer.step()
        optimizer.zero_grad()
    assert next_token_loss(model(tokens), targets).item() < 0.3  # from ln 11 = 2.4


def test_backprop_is_the_slope_of_the_loss() -> None:
    model = small.rough(small.some_model())
    tokens, targets = batch()
    assign("backprop", model, tokens, targets)
    step, chance = 1e-6, torch.Generator().manual_seed(0)
    for parameter in model.parameters():
        assert parameter.grad is not None
        for index in torch.randint(parameter.numel(), (3,), generator=chance).tolist():
            with torch.no_grad():
                flat, losses = parameter.view(-1), []
                before = flat[index].item()
                for moved in (before + step, before - step):
                    flat[index] = moved
                    losses.append(next_token_loss(model(tokens), targets).item())
                flat[index] = before
            slope = (losses[0] - losses[1]) / (2 * step)
            assert parameter.grad.view(-1)[index].item() == pytest.approx(slope, rel=1e-5, abs=1e-8)


def test_backprop_of_micro_batches_adds_up_to_that_of_the_whole() -> None:
    whole, pieces = small.rough(small.some_model()), small.rough(small.some_model())
    tokens, targets = batch(6)
    loss = assign("backprop", whole, tokens, targets)
    losses = [assign("backprop", pieces, *piece) for piece in zip(tokens.chunk(3), targets.chunk(3), strict=True)]
    torch.testing.assert_close(torch.stack(losses).mean(), loss)
    for of_pieces, of_whole in zip(gradients(pieces), gradients(whole), strict=True):
        torch.testing.assert_close(of_pieces / 3, of_whole)
