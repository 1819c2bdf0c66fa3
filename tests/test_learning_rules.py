"""What every learning rule keeps, and backprop against differences."""

from typing import Any

import pytest
import small
import torch
from small import CONTEXT
from torch import Tensor

from lmlab.core import registry
from lmlab.core.errors import UserError
from lmlab.model.models import base as models
from lmlab.model.models.base import LanguageModel, next_token_loss
from lmlab.training.learning_rules.base import LearningRule
from lmlab.training.optimizers.base import joined, parameter_groups

every_rule = pytest.mark.parametrize("name", registry.names("learning_rules"))


def rule_for(name: str, model: LanguageModel, seed: int = 1, **changes: Any) -> LearningRule:
    """A rule for a model, in its precision, its options as in params.yaml but for the `changes`."""
    torch.manual_seed(seed)
    rule: LearningRule = registry.choose(small.tree(**changes), "learning_rules", name).build(model)
    return rule.to(next(model.parameters()).dtype)


def refusal(name: str, model: LanguageModel) -> str:
    """Why a rule cannot work with a model; empty if it can."""
    try:
        registry.choose(small.tree(), "learning_rules", name).build(model)
    except UserError as error:
        return str(error)
    return ""


def batch(size: int = 4) -> tuple[Tensor, Tensor]:
    both = small.tokens(size, CONTEXT + 1)
    return both[:, :-1].contiguous(), both[:, 1:].contiguous()


def gradients(model: torch.nn.Module) -> list[Tensor]:
    return [torch.zeros_like(p) if p.grad is None else p.grad.clone() for p in model.parameters()]


def assign(name: str, model: LanguageModel, *of_batch: Tensor, **changes: Any) -> Tensor:
    """A rule's first call, with the same chance each time."""
    rule = rule_for(name, model, **changes)
    torch.manual_seed(2)
    return rule.assign_gradients(model, *of_batch)


@every_rule
def test_a_rule_adds_to_the_gradients_that_are_there(name: str) -> None:
    model = small.rough(small.some_model())
    assign(name, model, *batch())
    once = gradients(model)
    assert any(gradient.any() for gradient in once)
    assign(name, model, *batch())
    for twice, single in zip(gradients(model), once, strict=True):
        torch.testing.assert_close(twice, 2 * single)


@every_rule
def test_a_rule_changes_nothing_of_the_model_but_its_gradients(name: str) -> None:
    model = small.rough(small.some_model()).train()
    weights = {key: value.clone() for key, value in model.state_dict().items()}
    tokens, targets = batch()
    modes, doings = (
        [module.training for module in model.modules()],
        [vars(module).copy() for module in model.modules()],
    )
    assign(name, model, tokens, targets)
    assert all(torch.equal(value, weights[key]) for key, value in model.state_dict().items())
    assert [module.training for module in model.modules()] == modes
    assert [vars(module).keys() for module in model.modules()] == [
        of_module.keys() for of_module in doings
    ]
    assert all(p.requires_grad and p.is_leaf for p in model.parameters())
    assert all(
        torch.equal(one, other) for one, other in zip((tokens, targets), batch(), strict=True)
    )
    hooks: list[Any] = [
        hook
        for module in model.modules()
        for hook in (module._forward_hooks, module._backward_hooks)
    ]
    assert not any(hooks)
    torch.testing.assert_close(
        model(tokens), small.rough(small.some_model()).train()(tokens), rtol=0, atol=0
    )


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
    for _ in range(2):
        rule.assign_gradients(model, *batch())
        weights = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
        assert not any(isinstance(module, LanguageModel) for module in rule.modules())
        assert not weights & {
            value.untyped_storage().data_ptr() for value in rule.state_dict().values()
        }


@every_rule
def test_a_rule_resumed_with_its_state_goes_on_bit_for_bit(name: str) -> None:
    model = small.model(small.some_model()).train()
    rule = rule_for(name, model)
    for _ in range(2):
        rule.assign_gradients(model, *batch())
        with torch.no_grad():  # as an optimizer would
            for parameter in [*model.parameters(), *rule.parameters()]:
                if parameter.grad is not None:
                    parameter.sub_(parameter.grad, alpha=0.1)
        model.zero_grad()
        rule.zero_grad()
    resumed = rule_for(name, model, seed=9)
    resumed.load_state_dict(rule.state_dict())

    def next_step(of_rule: LearningRule) -> list[Tensor]:
        model.zero_grad()
        torch.manual_seed(3)
        of_rule.assign_gradients(model, *batch())
        return (
            gradients(model)
            + gradients(of_rule)
            + [value.clone() for value in of_rule.state_dict().values()]
        )

    for one, other in zip(next_step(rule), next_step(resumed), strict=True):
        assert torch.equal(one, other)


@every_rule
def test_a_rules_own_parameters_are_each_in_one_group(name: str) -> None:
    model = small.model(small.some_model())
    rule = rule_for(name, model)
    groups = rule.own_groups(model)
    assert set(groups) <= {"embeddings", "readout", "matrices", "vectors"}
    listed = [id(parameter) for group in groups.values() for parameter in group]
    assert sorted(listed) == sorted(id(parameter) for parameter in rule.parameters())


@every_rule
def test_a_rule_overfits_one_batch_or_says_why_not(name: str) -> None:
    """At a rate so high that few steps are enough, falling in the last 20: in all of those it has
    to know the batch.
    """
    model = small.model(small.some_model())
    rule = rule_for(name, model)
    groups = joined(parameter_groups(model), rule.own_groups(model))
    optimizer = torch.optim.AdamW([p for group in groups.values() for p in group], lr=0.03)
    falling = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: min(1, (60 - step) / 20))
    learned = True
    for step in range(60):
        learned = rule.assign_gradients(model, *batch()).item() < 0.3  # from ln 11 = 2.4
        if step >= 40 and not learned:
            break
        optimizer.step()
        falling.step()
        optimizer.zero_grad()
    assert learned != bool(rule.cannot_overfit), rule.cannot_overfit
    assert all(
        value.is_contiguous() for value in rule.state_dict().values()
    )  # as a checkpoint gives them back


@every_rule
@pytest.mark.parametrize("other", registry.names("models"))
def test_a_rule_teaches_every_model_or_refuses_it_by_name(name: str, other: str) -> None:
    choice = registry.choose(small.tree(), "models", other)
    model = small.model(choice).train()
    with torch.device("meta"):
        without_storage = models.build(choice, small.VOCABULARY, CONTEXT)
    if refused := refusal(name, without_storage):
        assert f"train.learning_rule: {name}" in refused
        assert refusal(name, model) == refused
        return
    rule_for(name, model).assign_gradients(model, *batch())
    found = gradients(model)
    assert all(gradient.isfinite().all() for gradient in found)
    assert any(gradient.any() for gradient in found)


@every_rule
def test_a_rule_teaches_every_row_of_a_table_that_the_batch_uses_also_the_one_all_tokens_share(
    name: str,
) -> None:
    model = small.rough(registry.choose(small.tree(), "models", "n_gram_table")).train()
    if refusal(name, model):
        return
    assign(name, model, *batch())
    for parameter, weight in model.named_parameters():
        assert weight.grad is not None, parameter
        assert weight.grad.any(), parameter


@every_rule
def test_a_rule_works_in_lower_precision(name: str) -> None:
    model = small.model(small.some_model()).train()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = assign(name, model, *batch())
    assert loss.isfinite()
    assert all(gradient.isfinite().all() for gradient in gradients(model))


def cosine(ours: list[Tensor], theirs: list[Tensor]) -> float:
    """Of the angle between two sets of gradients, all taken together as one vector."""
    one, other = (torch.cat([gradient.flatten() for gradient in found]) for found in (ours, theirs))
    return float(torch.nn.functional.cosine_similarity(one, other, dim=0))


def true_gradients(model: LanguageModel, *of_batch: Tensor) -> list[Tensor]:
    """By backprop, the model's gradients left as they were not there."""
    model.zero_grad()
    assign("backprop", model, *of_batch)
    found = gradients(model)
    model.zero_grad()
    return found


def test_backprop_is_the_slope_of_the_loss() -> None:
    model = small.rough(small.some_model())
    tokens, targets = batch()
    assign("backprop", model, tokens, targets)
    step, rng = 1e-6, torch.Generator().manual_seed(0)
    for parameter in model.parameters():
        assert parameter.grad is not None
        for index in torch.randint(parameter.numel(), (3,), generator=rng).tolist():
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
    losses = [
        assign("backprop", pieces, *piece)
        for piece in zip(tokens.chunk(3), targets.chunk(3), strict=True)
    ]
    torch.testing.assert_close(torch.stack(losses).mean(), loss)
    for of_pieces, of_whole in zip(gradients(pieces), gradients(whole), strict=True):
        torch.testing.assert_close(of_pieces / 3, of_whole)
